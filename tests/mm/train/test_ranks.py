"""Two ranks are one: losses, gradients, buffers and logged figures of two gloo processes are those of one with the
global batch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from alignment import ScheduleConfig
from encoders.quantizer import QUANTIZERS, QuantizerConfig
from encoders.tokenizer import Tokenizer
from kernels.collectives import sum_over_ranks, world
from mm.artifacts.run import Run
from mm.batch import Batch
from mm.config import AlignConfig
from mm.train.task import AlignTask

SAMPLES = 6
CAPTIONS = ("red circle", "two blue squares", "one small green heart left of a star", "stripes", "a dot", "a blue star")
PARTLY = [True, False, True, True, True, False]
"""Audio clips of a batch: each rank has another number of them."""
ONE_RANK = [True, True, True, False, False, False]
"""The second rank has none."""


class Logged(AlignTask):
    """A task that believes to be at a given step, without a trainer, and keeps what it logs."""

    def __init__(self, run: Run, step: int) -> None:
        super().__init__(run)
        self.step = step
        self.logged: dict[str, float] = {}

    @property
    def global_step(self) -> int:  # type: ignore[override]
        return self.step

    @property
    def global_rank(self) -> int:  # type: ignore[override]
        return dist.get_rank() if dist.is_initialized() else 0

    @property
    def current_rate(self) -> float:
        return 0.1

    def log(self, name: str, value: Any, **_: object) -> None:  # type: ignore[override]
        self.logged[name] = float(value)


def batch_of(config: AlignConfig, seed: int, audio: list[bool], captions: int) -> Batch:
    """The global batch; the captions of samples 0 and 4 differ in length from those of the others, and so do ranks."""
    random = torch.Generator().manual_seed(seed)
    samples = int(config.audio.seconds * config.audio.sample_rate)
    texts = [CAPTIONS[(seed + row // captions + row % captions) % 6] for row in range(SAMPLES * captions)]
    ids, mask = Tokenizer("scratch", config.text.max_tokens)(texts)
    lengths = torch.linspace(samples // 2, samples, SAMPLES).long()
    batch = Batch(torch.tensor([0, 1, 2, 3, 4, 1]))  # two samples of one image on different ranks
    batch.put("image", torch.randint(0, 256, (SAMPLES, 3, 32, 32), dtype=torch.uint8, generator=random))
    waveforms = torch.randn(SAMPLES, samples, generator=random) * 0.1
    batch.put("audio", waveforms, torch.arange(samples) < lengths[:, None])
    batch.put("text", ids, mask)
    batch.sample_index["text"] = torch.arange(SAMPLES * captions) // captions
    batch.present["audio"] = torch.tensor(audio)
    return batch


def shard(batch: Batch, rank: int, ranks: int) -> Batch:
    """A rank's samples as its loader gives them: captions no longer than its own longest."""
    part = Batch(batch.ids.chunk(ranks)[rank])
    for m in batch.modalities:
        mask = batch.masks[m].chunk(ranks)[rank] if m in batch.masks else None
        inputs = batch.inputs[m].chunk(ranks)[rank]
        if m == "text":
            assert mask is not None
            length = int(mask.sum(1).max())
            inputs, mask = inputs[:, :length], mask[:, :length]
        part.put(m, inputs, mask)
        part.present[m] = batch.present[m].chunk(ranks)[rank]
        part.sample_index[m] = batch.sample_index[m].chunk(ranks)[rank] - rank * len(part.ids)
    return part


def stepped(task: Logged, batches: list[Batch], rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """Steps on batches, with gradients averaged over ranks as DDP does -> by name what both sides must agree in.

    Statistics, codes and routing move, weights do not: a step would enlarge rounding.
    """
    task.train()
    found: dict[str, Tensor] = {}
    for batch in batches:
        total = task.training_step(shard(batch, rank, ranks), 0)
        total.backward()
        task.on_after_backward()
        for name, parameter in task.named_parameters():
            if parameter.grad is not None:
                parameter.grad = sum_over_ranks(parameter.grad.contiguous(), world()) / ranks
                found[f"{task.step} gradient {name}"] = parameter.grad.clone()
        for name, value in task.logged.items():
            found[f"{task.step} logged {name}"] = torch.tensor(value)
        task.zero_grad()
        task.step += 1
    for name, buffer in task.named_buffers():
        found[f"buffer {name}"] = buffer.clone()
    return found


Case = tuple[str, int, list[bool], int, dict[str, Any]]


def cases(tiny: AlignConfig) -> list[Case]:
    """Name, first step, present audio, captions of a sample, changes of the settings."""
    moe = replace(tiny.model.backbone.moe, balance=0.1, entropy=0.1)
    model = replace(
        tiny.model, direct=True, head=8, generate=True, backbone=replace(tiny.model.backbone, moe=moe, checkpoint=True)
    )
    other = {"model": model, "loss": replace(tiny.loss, contrastive="sigmoid", filip_rows=4, itm_rows=3)}
    found: list[Case] = [
        ("stage 1", 0, PARTLY, 1, {}),
        ("stage 3", 8, PARTLY, 1, {}),
        ("no audio on one rank, two captions, other losses", 8, ONE_RANK, 2, other),
    ]
    drawn = {"few_tokens": 1.0, "codes_later": 1.0, "detail_projected": 0.0}
    for kind, stage3 in drawn.items():
        schedule = ScheduleConfig(kind, stage2=0.0, stage3=stage3)  # type: ignore[arg-type]
        found.append((kind, 5, PARTLY, 2, {"schedule": schedule}))
    alone = ScheduleConfig("projections_first", stage3=1.0)
    found.append(("projections_first", 5, PARTLY, 2, {"schedule": alone, "model": replace(tiny.model, direct=True)}))
    detail = {
        "schedule": ScheduleConfig("detail_on_top", stage2=0.0, stage3=1.0),
        "model": replace(tiny.model, direct=True, token_head=8),
    }
    found.append(("detail_on_top", 5, PARTLY, 2, detail))
    for kind in QUANTIZERS:
        if kind != tiny.bottleneck.quantizer.kind:
            depth = 2 if kind == "residual" else 1
            quantizer = QuantizerConfig(kind, num_codes=16, width=8, quantizers=depth, levels=(4, 3))  # type: ignore[arg-type]
            found.append((kind, 3, PARTLY, 1, {"bottleneck": replace(tiny.bottleneck, quantizer=quantizer)}))
    return found


STEPS = 2
"""Forwards of a case: in the second one, codes are revived."""


def found_in(tiny: AlignConfig, build: Callable[..., Run], rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """What all cases find, by name."""
    found = {}
    for name, step, audio, captions, changes in cases(tiny):
        settings = {"loss": replace(tiny.loss, filip_rows=4, itm_rows=4), **changes}
        task = Logged(build(**settings), step)
        batches = [batch_of(tiny, seed, audio, captions) for seed in range(STEPS)]
        found |= {f"{name}: {key}": value for key, value in stepped(task, batches, rank, ranks).items()}
    return found


def one_rank(rank: int, tiny: AlignConfig, build: Callable[..., Run], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(found_in(tiny, build, rank, 2), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """What is not equal to 1e-5 of its scale; of gradients, whose sums of opposite signs round more, to 3e-5."""
    wrong = sorted(found.keys() ^ expected.keys())
    for name, value in expected.items():
        if name in found:
            error = (found[name].double() - value.double()).abs().max()
            bound = 3e-5 if "gradient" in name else 1e-5
            if not error <= bound * value.double().abs().max().clamp(min=1e-2):
                wrong.append(f"{name}: {error:.2g} of {value.double().abs().max():.2g}")
    return wrong


def test_two_ranks_are_one(tiny: AlignConfig, tiny_run: Callable[..., Run], tmp_path: Path) -> None:
    mp.start_processes(one_rank, (tiny, tiny_run, str(tmp_path)), nprocs=2, start_method="fork")
    expected = found_in(tiny, tiny_run)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert not differences(found, expected)
