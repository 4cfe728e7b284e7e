"""Adapt a finished run to another set: LoRA, QLoRA or all weights, with what it forgets of its own set beside.

    python scripts/finetune.py --run runs/flickr8k --data.root data/molecules
    python scripts/finetune.py --run runs/flickr8k --data.root DIR --strategy full --freeze '[encoders.*]'
    python scripts/finetune.py --run runs/flickr8k --data.root DIR --lora.targets '[w_in,w_out]' --seed 1

Writes runs/<name>/: a run like any other (its result.json has `adaptation`), adapter/ and coverage.txt.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from alignment import ScheduleConfig
from eval.fingerprint import fingerprint
from mm.adapt.adapter import save_adapter
from mm.adapt.lora import LoraConfig, attach, bake, coverage
from mm.adapt.planner import Strategy, choose, estimate, memory_in_use, trainable
from mm.adapt.quantize import dequantize, ledger, quantize
from mm.adapt.task import AdaptTask, freeze
from mm.command import log_training, run_command
from mm.config import AlignConfig, EvalConfig, TrainConfig
from mm.data.module import AlignData, CachedView, trainer_precision
from mm.data.sample import CaptionDataset
from mm.evaluate import evaluate_split
from mm.memory import keep_freed_memory
from mm.optim import OptimConfig
from mm.probe import probe
from mm.results import judge, show
from mm.run import load_run, save_weights, write_config, write_json
from mm.task import AlignTask


@dataclass(frozen=True)
class DomainData:
    root: str
    """Folder in COCO caption layout or of shards; scripts/prepare_domain.py writes one."""
    train: str = "train"
    """Split to train on."""
    val: str = "val"
    """Split that selects the checkpoint and is reported."""
    audio_root: str | None = None
    """Where `audio/` lies, if not in `root`."""


@dataclass(frozen=True)
class FinetuneConfig:
    run: str
    """Folder of the finished run that is adapted."""
    data: DomainData
    name: str = ""
    """The adapted run is written to <runs>/<name>; by default <run>_<data>_<strategy>."""
    runs: str = "runs"
    seed: int = 0
    strategy: Literal["auto", "lora", "qlora", "full"] = "auto"
    """auto: lora below 10,000 training images, qlora to 100,000, full above."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    freeze: tuple[str, ...] = ()
    """Name patterns of parameters that do not train, such as encoders.*."""
    rates: dict[str, float] = field(default_factory=dict)
    """Factors on the learning rate by name pattern, such as {"backbone.*": 0.1}."""
    metric: str = "RSUM"
    """The checkpoint with the largest is kept: RSUM, image_to_text/R@1 …, of data.val without re-ranking."""
    patience: int = 0
    """Evaluations without a better checkpoint after which training stops; 0 never stops early."""
    general: bool = True
    """Evaluate the run's own validation split before and after: what was forgotten."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=3e-4))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(kind="joint"))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=200, evaluate_every=50))


def finetune(config: FinetuneConfig) -> None:
    started, run = time.perf_counter(), load_run(config.run)
    seed_everything(config.seed, verbose=False)
    own, base = run.config, fingerprint(lambda: probe(run))
    data = AlignData(domain_config(own, config))
    data.setup()
    validation = data.open(config.data.val)
    data.cache_features(run.model, {config.data.train: data.train, config.data.val: validation})
    general = own_validation(run, own) if config.general else None
    strategy: Strategy = choose(len(data.train)) if config.strategy == "auto" else config.strategy
    folder = Path(config.runs) / (config.name or f"{Path(config.run).name}_{data.config.data.folder.name}_{strategy}")
    aligned = replace(data.config, name=folder.name)
    before = {"domain": score(run, data, validation, config.data.val, config.metric)}
    if general:
        before["general"] = score(run, *general, own.data.val, "RSUM")
    task = AdaptTask(run, aligned, strategy != "full", config.rates)
    write_config(config, folder)  # type: ignore[arg-type]  # any settings' dataclass will do
    sizes = prepare(task, strategy, config, folder)
    view = CachedView(data.train_view, data, config.data.train)
    planned = estimate(task, data.stack([view[i, 0] for i in range(min(config.train.batch_size, len(view)))]))
    print(planned.line(strategy, len(data.train), config.train.steps))
    best = KeepBest(lambda: score(task, data, validation, config.data.val, config.metric), config)
    memory, trained = PeakMemory(), time.perf_counter()
    build_trainer(config, folder, [RichProgressBar(), best, memory]).fit(task, data)
    minutes = (time.perf_counter() - trained) / 60
    adaptation = {"strategy": strategy, "run": config.run, "base": base.digest,
                  "targets": list(config.lora.targets) if task.adapters else [], "trainable": trainable(task),
                  "peak_memory_gib": memory.bytes / 2**30, "minutes": minutes, "estimate": asdict(planned),
                  "selected": {"metric": config.metric, "on": validation.name, "step": best.step, "value": best.value},
                  "ledger": sizes, "before": before}  # fmt: skip
    if task.adapters:
        packed = strategy == "qlora"
        save_adapter(task.model, config.lora, folder / "adapter", base, frozen_trunks(task) if packed else None)
        bake(task.model)
        dequantize(task.model)
    save_weights(task, folder)
    general_after = {"general": score(task, *general, own.data.val, "RSUM")} if general else {}
    result = judge(task, data, {config.data.val: validation}, folder, started)
    after = {"domain": result["metrics"][config.metric], **general_after}
    write_json(folder / "result.json", result | {"adaptation": adaptation | {"after": after}})
    show(result)
    for part, value in after.items():
        print(f"{part} {config.metric if part == 'domain' else 'RSUM'}: {before[part]:.1f} → {value:.1f}")


def domain_config(own: AlignConfig, config: FinetuneConfig) -> AlignConfig:
    """The run's own settings, reading and training as asked for."""
    data = replace(own.data, root=config.data.root, train=config.data.train, val=config.data.val, karpathy=None,
                   audio_root=config.data.audio_root)
    return replace(own, runs=config.runs, seed=config.seed, data=data, optim=config.optim, schedule=config.schedule,
                   train=config.train)


def own_validation(run: AlignTask, own: AlignConfig) -> tuple[AlignData, CaptionDataset]:
    """The set on which the run was judged. Raises ValueError where it has gone."""
    data = AlignData(own)
    try:
        dataset = data.open(own.data.val)
    except OSError as error:
        raise ValueError(f"the run's own set cannot be read ({error}): --general false leaves it out") from error
    data.cache_features(run.model, {own.data.val: dataset})
    return data, dataset


def score(task: AlignTask, data: AlignData, dataset: CaptionDataset, split: str, metric: str) -> float:
    """A metric of a split, by embeddings alone."""
    found = evaluate_split(task.model, task.loss, data, dataset, split, EvalConfig(rerank=0)).metrics()
    if metric not in found:
        raise ValueError(f"metric={metric!r} is not measured on {dataset.name}: choose from {', '.join(found)}")
    return found[metric]


def prepare(task: AdaptTask, strategy: Strategy, config: FinetuneConfig, folder: Path) -> list[dict[str, Any]]:
    """Freeze, pack and adapt as the strategy says; -> the size ledger. coverage.txt lists every parameter."""
    if strategy != "full":
        coverage(task.model, config.lora)  # before anything is packed: a wrong target is known at once
        if strategy == "qlora":
            quantize(task.model, skip=frozen_trunks(task))
        found = attach(task.model, config.lora)
        task.loss.requires_grad_(False)
        (folder / "coverage.txt").write_text("\n".join(found.lines()) + "\n")
        print(f"{found.summary()} ({folder / 'coverage.txt'})")
    freeze(task, config.freeze)
    rows = ledger(task.model)
    for row in rows:
        print(f"  {row.group:<20} {row.weights:>12,} weights {row.bits:>6.2f} bits each")
    return [asdict(row) | {"bits": round(row.bits, 3)} for row in rows]


def frozen_trunks(task: AlignTask) -> tuple[str, ...]:
    """What is never packed: the cached features are theirs."""
    return tuple(f"encoders.{m}.trunk." for m in task.model.modalities if getattr(task.config, m).frozen)


def build_trainer(config: FinetuneConfig, folder: Path, callbacks: list[Callback]) -> Trainer:
    train = config.train
    every = min(10, train.steps)
    return Trainer(
        max_steps=train.steps, max_epochs=1, accelerator=train.accelerator, devices=1,
        precision=trainer_precision(train.precision), use_distributed_sampler=False,
        logger=CSVLogger(folder.parent, name=folder.name, version="", flush_logs_every_n_steps=every),
        log_every_n_steps=every, callbacks=callbacks, num_sanity_val_steps=0, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip


class KeepBest(Callback):
    """Judges every so many steps, keeps the best state seen and leaves it in the task; with a decay, of averages."""

    def __init__(self, judge: Callable[[], float], config: FinetuneConfig) -> None:
        self.judge, self.every, self.patience = judge, config.train.evaluate_every, config.patience
        self.average = get_ema_multi_avg_fn(config.train.ema) if config.train.ema else None
        self.averaged: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        self.value, self.step, self.stale = float("-inf"), 0, 0

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if self.average:
            now = moving(task)
            self.averaged = self.averaged or {name: p.clone() for name, p in now.items()}
            self.average([self.averaged[n] for n in now], list(now.values()), step)  # type: ignore[arg-type]
        if step < trainer.max_steps and (not self.every or step % self.every):
            return
        newest = snapshot(task)
        restore(task, newest | self.averaged)
        value = self.judge()
        task.log("val/selected", value)
        self.stale += 1
        if value > self.value:
            self.value, self.step, self.stale, self.kept = value, step, 0, snapshot(task)
        restore(task, newest)
        task.train()
        if self.patience and self.stale >= self.patience:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, task: LightningModule) -> None:
        restore(task, self.kept)


class PeakMemory(Callback):
    """The most memory in use after any backward, in bytes."""

    bytes = 0

    def on_after_backward(self, trainer: Trainer, task: LightningModule) -> None:
        self.bytes = max(self.bytes, memory_in_use())

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, *_: Any) -> None:
        self.bytes = max(self.bytes, memory_in_use())


def moving(task: LightningModule) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in task.named_parameters() if p.requires_grad}


def snapshot(task: LightningModule) -> dict[str, Tensor]:
    """What training changes: the parameters that move, and all buffers."""
    return {name: t.detach().clone() for name, t in (*moving(task).items(), *task.named_buffers())}


def restore(task: LightningModule, state: dict[str, Tensor]) -> None:
    for name, tensor in (*moving(task).items(), *task.named_buffers()):
        tensor.copy_(state[name])


if __name__ == "__main__":
    log_training()
    keep_freed_memory()
    run_command(FinetuneConfig, finetune)
