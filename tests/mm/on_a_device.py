"""Every stage of a small run on a device that is not the CPU: what the host read there, and what mixing devices did.

    python tests/mm/on_a_device.py SCENES FOLDER

The test beside it starts this in a process of its own, which has the device from its start, and reads what it prints.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import pretend  # first: see there
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch.utils._pytree import tree_leaves

from alignment import ScheduleConfig
from encoders import AudioConfig, BottleneckConfig, ImageConfig, TextConfig
from encoders.quantizer import QuantizerConfig
from mm.adapt.config import ContinueConfig, DomainData, FinetuneConfig
from mm.adapt.continued import continue_pretrain
from mm.adapt.finetune import finetune
from mm.adapt.planner import estimate
from mm.adapt.task import AdaptTask
from mm.artifacts.run import Run, build_run, save_run
from mm.batch import Batch
from mm.bench.features import implementations
from mm.bench.peer import peer_step
from mm.bench.step import StandingTask, own_step
from mm.config import AlignConfig, EvalConfig, TrainConfig, encoders_of, plan_of
from mm.data.config import DataConfig
from mm.data.module import AlignData
from mm.device import autocast
from mm.evaluation.codes import evaluate_codes
from mm.evaluation.embed import Embedded
from mm.evaluation.models import FinishedRun, OpenClipPeer
from mm.evaluation.reconstructions import draw_reconstructions
from mm.evaluation.retrieval import evaluate_split
from mm.infer.decoding import Decoding
from mm.infer.embedder import Embedder
from mm.model.backbone import BackboneConfig
from mm.model.moe import MoEConfig
from mm.model.multimodal import ModelConfig
from mm.train.align import train_align
from mm.train.callbacks import WeightAverage, restore, snapshot
from mm.train.optim import build_optimizer
from mm.train.trainer import fit
from mm.train.vqvae import train_vqvae
from mm.train.vqvae_config import VQVAEConfig

ROWS = 6
STAGES = (
    "step",
    "schedules",
    "average",
    "evaluation",
    "codes",
    "planner",
    "embedder",
    "writing",
    "finished",
    "peer",
    "bench",
    "scripts",
)
STRATEGY: Any = "qlora" if find_spec("peft") and find_spec("bitsandbytes") else "full"


SCHEDULES: tuple[Any, ...] = (
    "few_tokens",
    "codes_later",
    "projections_first",
    "detail_on_top",
    "anchor_first",
    "detail_apart",
    "detail_projected",
)
"""Those that change what the backbone reads, or where gradients meet."""


class Standing(StandingTask):
    """Late in a run, where every loss is on."""

    current_rate = 0.0

    def __init__(self, run: Run) -> None:
        super().__init__(run, 0.9)


def settings(scenes: Path, cache: Path) -> AlignConfig:
    """Three modalities, the trunk of images frozen."""
    moe = MoEConfig(num_experts=8, top_k=2, hidden=8, shared=16, balance=1e-2, entropy=1e-2)
    backbone = BackboneConfig(width=32, layers=2, heads=2, dropout=0.1, moe=moe)
    return AlignConfig(
        data=DataConfig(root=str(scenes), cache=str(cache)),
        model=ModelConfig(embedding=16, token_embedding=8, token_head=8, head=16, direct=True, backbone=backbone),
        image=ImageConfig(size=32, width=16, frozen=True),
        audio=AudioConfig(seconds=0.32, width=16),
        text=TextConfig(width=16, depth=1, heads=2, max_tokens=24),
        bottleneck=BottleneckConfig(quantizer=QuantizerConfig(num_codes=16, width=8), reconstruct=2),
        schedule=ScheduleConfig(kind="progressive"),
        train=TrainConfig(steps=10, batch_size=ROWS),
        eval=EvalConfig(batch_size=8, rerank=2),
    )


class Stages:
    """The stages of one run. Each moves its own tensors: a batch comes from the CPU, as a loader gives it."""

    def __init__(self, scenes: Path, folder: Path, device: torch.device) -> None:
        self.config = settings(scenes, folder / "cache")
        self.folder = folder
        self.device = device
        self.data = AlignData(self.config.data, encoders_of(self.config), plan_of(self.config), "auto")
        self.data.setup()
        torch.manual_seed(0)
        self.run = build_run(self.config, self.data.vocabulary).to(device)
        self.task = Standing(self.run)
        self.optimizer = build_optimizer(self.task.groups())
        self.dataset = self.data.open("val")

    def features(self) -> None:
        """Of the frozen trunk, of both splits."""
        self.data.cache_features(self.run.model.encoders, {"train": self.data.train, "val": self.dataset})

    def raw_batch(self) -> Batch:
        """Noise for images: their trunk is frozen."""
        batch = self.batch()
        batch.put("image", torch.zeros(ROWS, 3, 32, 32, dtype=torch.uint8))
        return batch

    def batch(self) -> Batch:
        return self.data.train_batch(list(range(ROWS)))

    def step(self) -> None:
        """What the trainer does with a batch."""
        self.step_of(self.task)

    def schedules(self) -> None:
        """A step of each schedule at which it is not the usual one."""
        for kind in SCHEDULES:
            schedule = ScheduleConfig(kind, stage2=0.0, stage3=0.89 if kind == "detail_projected" else 0.95)
            self.step_of(Standing(replace(self.run, config=replace(self.config, schedule=schedule))))

    def step_of(self, task: Standing) -> None:
        task.train()
        batch = self.batch().to(self.device)
        task.training_step(batch, 0).backward()
        task.on_after_backward()
        task.configure_gradient_clipping(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def average(self) -> None:
        """An average of weights that a checkpoint brought back on the CPU, and a state that is put back."""
        average = WeightAverage(0.5)
        average.load_state_dict({"averaged": {n: t.cpu() for n, t in snapshot(self.task).items()}, "updates": 1})
        average.on_train_batch_end(mock.Mock(global_step=5), self.task)
        restore(self.task, average.averaged)

    def evaluation(self) -> None:
        """Embedding, retrieval, re-ranking; the tokens of a split wait in the memory of the CPU."""
        found = evaluate_split(self.run, self.data, self.dataset, "val", self.config.eval)
        assert {tensor.device.type for tensor in tree_leaves(found.embeddings.parts)} == {"cpu"}

    def codes(self) -> None:
        """What a VQ-VAE is evaluated by."""
        view = self.data.eval_view(self.dataset)
        for modality in ("audio", "text"):
            encoder = self.run.model.encoders[modality]
            batches = self.data.caption_batches if modality == "text" else self.data.sample_batches
            evaluate_codes(encoder, modality, batches(view, "val", 8))
            shown = next(batches(view, "val", 2))
            draw_reconstructions(encoder, modality, shown, self.folder, self.data.tokenizer)

    def planner(self) -> None:
        estimate(AdaptTask(self.run, adapters=False), self.batch())

    def embedder(self) -> None:
        sample = self.dataset[0]
        assert sample.image is not None and sample.audio is not None
        embedder = Embedder(self.run)
        embedder.encode_audio([(sample.audio, sample.sample_rate)])
        embedder.match([sample.image], sample.captions[:1])

    def writing(self) -> None:
        """A model that learns to write and writes, beside an image and by beams."""
        config = replace(self.config, model=replace(self.config.model, generate=True))
        run = build_run(config, self.data.vocabulary).to(self.device)
        Standing(run).find(self.batch().to(self.device))[0].total.backward()
        sample = self.dataset[0]
        for beams in (1, 2):
            Embedder(run).generate(image=[sample.image], prefix="a", decoding=Decoding(3, beams=beams))

    def finished(self) -> None:
        """A run that was saved, on a set, with its match head."""
        save_run(self.run, self.folder / "run")
        finished = FinishedRun(self.folder / "run")
        assert self.has(finished.run.model)
        found, split = finished.evaluate(finished.open("val"), "val", samples=2)
        rows = torch.arange(3).numpy()
        split.joint["match head"](rows, rows)
        assert found["metrics"]

    def peer(self) -> None:
        """An open_clip model, in the place of whose weights stands a small one."""
        vision = CLIPVisionCfg(layers=1, width=32, head_width=32, patch_size=16, image_size=32)
        text = CLIPTextCfg(width=32, heads=1, layers=1)
        with mock.patch("mm.infer.towers.open_clip_model", lambda *_: CLIP(16, vision, text)):
            peer = OpenClipPeer("ViT-B-32", self.config.data.root, "nothing")
        assert self.has(peer.tower.model)
        peer.embed(peer.open("val"), "val")

    def bench(self) -> None:
        """The steps that bench_step times."""
        batches = [self.batch().to(self.device)]
        precision = autocast("auto", self.device)
        own_step(self.task, batches, precision)()
        peer = peer_step(self.run, [self.raw_batch().to(self.device)], precision)
        peer()
        encoder = self.run.model.encoders["image"]
        pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        with mock.patch("mm.bench.features.SIDE", 8):
            for run in implementations(encoder, pixels, "auto", self.device).values():
                run()

    def scripts(self) -> None:
        """The four training scripts, up to the trainer: it is handed a task that is on its device."""
        train = TrainConfig(steps=2, batch_size=ROWS)
        adapted = {"run": str(self.folder / "run"), "data": DomainData(str(self.config.data.root)), "train": train}
        places = {"runs": str(self.folder / "runs")}
        text = replace(self.config.text, frozen=False)
        vqvae = VQVAEConfig("text", data=self.config.data, train=train, text=text, **places)
        starts = {
            "mm.train.align": lambda: train_align(replace(self.config, name="aligned", train=train, **places)),
            "mm.train.vqvae": lambda: train_vqvae(vqvae),
            "mm.adapt.finetune": lambda: finetune(FinetuneConfig(**adapted, **places, strategy=STRATEGY)),
            "mm.adapt.continued": lambda: continue_pretrain(ContinueConfig(**adapted, **places)),
        }
        for module, start in starts.items():
            builder = module if module.startswith("mm.train") else "mm.adapt.training"
            with (
                mock.patch(f"{module}.choose_device", lambda *_: self.device),
                mock.patch(f"{builder}.build_trainer", lambda *_: Trainer(self.device)),
                mock.patch(f"{builder}.fit", self.fits),
            ):
                try:
                    start()
                except StopIteration:
                    continue
            raise AssertionError(f"{module} never trained")

    def fits(self, trainer: Any, task: Any, *_: Any) -> None:
        """`fit` around a trainer that leaves the task on the CPU, as Lightning does; ends the script."""
        assert self.has(task)
        fit(trainer, task, mock.Mock(), self.folder, resume=False)
        assert self.has(task)
        raise StopIteration

    def has(self, module: torch.nn.Module) -> bool:
        """Whether all of a module is on the device."""
        return {tensor.device for tensor in module.state_dict().values()} == {self.device}


class Trainer:
    """What Lightning's does with a task besides training it; its strategy knows the device."""

    def __init__(self, device: torch.device) -> None:
        self.strategy = mock.Mock(root_device=device)

    def fit(self, task: Any, *_: Any, **__: Any) -> None:
        task.cpu()


@contextmanager
def left_on_the_cpu(name: str, stages: Stages) -> Iterator[None]:
    """Something that a stage forgot to move."""
    router = stages.run.model.backbone.blocks[0].moe.router
    kept = router.bias
    patches: dict[str, Any] = {
        "a buffer": mock.patch.dict(router._buffers, {"bias": torch.zeros(kept.shape)}),
        "a batch": mock.patch.object(Batch, "to", lambda batch, *_, **__: batch),
        "a shortlist's tokens": mock.patch.object(Embedded, "to", lambda part, _: part),
    }
    with patches[name]:
        yield


def said_of(stage: Callable[[], None]) -> str:
    """The error that a stage ends with."""
    try:
        stage()
    except RuntimeError as error:
        return str(error)
    return ""


def main() -> None:
    scenes, folder = map(Path, sys.argv[1:])
    device = pretend.DEVICE
    torch.set_num_threads(1)
    reads: dict[str, dict[str, int]] = {}
    with pretend.Device() as mode, mock.patch("mm.evaluation.models.choose_device", lambda *_: device):
        stages = Stages(scenes, folder, device)
        stages.features()
        stages.step()  # the first one makes the codebooks of its batch
        calls: dict[str, int] = {}
        for name in STAGES:
            mode.reads.clear()
            mode.calls = 0
            getattr(stages, name)()
            reads[name] = dict(Counter(mode.reads))
            calls[name] = mode.calls
        mixed = {}
        for name, stage in (
            ("a buffer", stages.step),
            ("a buffer", stages.evaluation),
            ("a batch", stages.evaluation),
            ("a batch", stages.planner),
            ("a batch", stages.embedder),
            ("a shortlist's tokens", stages.evaluation),
        ):
            with left_on_the_cpu(name, stages):
                mixed[f"{name} in {stage.__name__}"] = said_of(stage)
    print(json.dumps({"reads": reads, "calls": calls, "mixed": mixed}))


if __name__ == "__main__":
    main()
