"""Adapt a finished run to another set: LoRA, QLoRA or all weights, with what it forgets of its own set beside.

    python scripts/finetune.py --run runs/flickr8k --data.root data/molecules
    python scripts/finetune.py --run runs/flickr8k --data.root DIR --strategy full --train.freeze '[encoders.*]'
    python scripts/finetune.py --run runs/flickr8k --data.root DIR --lora.targets '[w_in,w_out]' --seed 1

Writes runs/<name>/: a run like any other (its result.json has `adaptation`), adapter/ and coverage.txt.
"""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lightning import seed_everything

from alignment import ScheduleConfig
from eval.fingerprint import fingerprint
from mm.adapt.adapter import save_adapter
from mm.adapt.lora import LoraConfig, attach, coverage, merge_and_unload
from mm.adapt.planner import Strategy, choose, estimate, trainable
from mm.adapt.sets import DomainData, EvaluationSet, KeepBest, PeakMemory, domain_config, own_set
from mm.adapt.task import AdaptTask, freeze
from mm.artifacts.probe import probe
from mm.artifacts.run import load_run, newest_checkpoint, save_weights, write_config
from mm.cli import log_training, run_command
from mm.compress.ledger import ledger
from mm.compress.nf4 import dequantize, quantize
from mm.config import TrainConfig
from mm.data.module import AlignData, CachedView
from mm.evaluation.result import judge, show
from mm.files import write_json
from mm.train.memory import keep_freed_memory
from mm.train.optim import OptimConfig
from mm.train.task import AlignTask
from mm.train.trainer import build_trainer, require_same_settings


@dataclass(frozen=True)
class FinetuneConfig:
    """Adapt a finished run to another set."""

    run: str
    """Folder of the finished run that is adapted."""
    data: DomainData
    name: str = ""
    """The adapted run is written to <runs>/<name>; by default <run>_<data>_<strategy>."""
    runs: str = "runs"
    seed: int = 0
    resume: bool = False
    """Go on from the newest checkpoint of the run of this name."""
    strategy: Literal["auto", "lora", "qlora", "full"] = "auto"
    """auto: lora below 10,000 training images, qlora to 100,000, full above."""
    lora: LoraConfig = field(default_factory=LoraConfig)
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
    data = AlignData(
        domain_config(
            own,
            config.data,
            runs=config.runs,
            seed=config.seed,
            optim=config.optim,
            schedule=config.schedule,
            train=config.train,
        )
    )
    data.setup()
    strategy: Strategy = choose(len(data.train)) if config.strategy == "auto" else config.strategy
    folder = Path(config.runs) / (config.name or f"{Path(config.run).name}_{data.config.data.folder.name}_{strategy}")
    if config.resume:
        require_same_settings(config, folder)
    validation = data.open(config.data.val)
    data.cache_features(run.model, {config.data.train: data.train, config.data.val: validation})
    sets = {"domain": EvaluationSet(data, validation, config.data.val, config.metric)}
    if config.general:
        sets["general"] = own_set(run, AlignData(own))
    before = {name: judged.score(run) for name, judged in sets.items()}
    task = AdaptTask(run, replace(data.config, name=folder.name), strategy != "full", config.rates)
    write_config(config, folder)  # type: ignore[arg-type]  # any settings' dataclass will do
    sizes = prepare(task, strategy, config, folder)
    view = CachedView(data.train_view, data, config.data.train)
    planned = estimate(task, data.stack([view[i, 0] for i in range(min(config.train.batch_size, len(view)))]))
    print(planned.line(strategy, len(data.train), config.train.steps))
    best = KeepBest(lambda: sets["domain"].score(task), config.train, config.patience)
    memory, trained = PeakMemory(), time.perf_counter()
    trainer = build_trainer(data.config.train, folder, [best, memory], config.resume)
    trainer.fit(task, data, ckpt_path=newest_checkpoint(folder) if config.resume else None, weights_only=True)
    minutes = (time.perf_counter() - trained) / 60
    adaptation = {
        "strategy": strategy,
        "run": config.run,
        "base": base.digest,
        "targets": list(config.lora.targets) if task.adapters else [],
        "trainable": trainable(task),
        "peak_memory_gib": memory.bytes / 2**30,
        "minutes": minutes,
        "estimate": asdict(planned),
        "selected": {"metric": config.metric, "on": validation.name, "step": best.step, "value": best.value},
        "ledger": sizes,
        "before": before,
    }
    if task.adapters:
        packed = strategy == "qlora"
        save_adapter(task.model, config.lora, folder / "adapter", base, frozen_trunks(task) if packed else None)
        merge_and_unload(task.model)
        dequantize(task.model)
    save_weights(task, folder)
    result = judge(task, data, {config.data.val: validation}, folder, started)
    after = {"domain": result["metrics"][config.metric]}
    if "general" in sets:
        after["general"] = sets["general"].score(task)
    write_json(folder / "result.json", result | {"adaptation": adaptation | {"after": after}})
    show(result)
    for name, value in after.items():
        print(f"{name} {sets[name].metric}: {before[name]:.1f} → {value:.1f}")


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
    freeze(task, config.train.freeze)
    rows = ledger(task.model)
    for row in rows:
        print(f"  {row.group:<20} {row.weights:>12,} weights {row.bits:>6.2f} bits each")
    return [asdict(row) | {"bits": round(row.bits, 3)} for row in rows]


def frozen_trunks(task: AlignTask) -> tuple[str, ...]:
    """What is never packed: the cached features are theirs."""
    return tuple(f"encoders.{m}.trunk." for m in task.model.modalities if getattr(task.config, m).frozen)


if __name__ == "__main__":
    log_training()
    keep_freed_memory()
    run_command(FinetuneConfig, finetune)
