"""A run from its settings to its report: train, evaluate, save."""

import time
from pathlib import Path

from lightning import Callback, seed_everything

from mm.artifacts.run import build_run, save_run, write_config
from mm.config import AlignConfig, encoders_of, plan_of
from mm.data.module import AlignData
from mm.evaluation.result import evaluate_run, show
from mm.evaluation.retrieval import first_stage_metrics
from mm.train.callbacks import PeriodicEvaluation, WeightAverage
from mm.train.freeze import freeze, require_fitting
from mm.train.memory import keep_freed_memory
from mm.train.task import AlignTask
from mm.train.trainer import build_trainer, fit


def train_align(config: AlignConfig) -> None:
    """Write runs/<name>/. Raises ValueError on settings that do not fit the data, FloatingPointError on divergence."""
    keep_freed_memory()
    started = time.perf_counter()
    folder = Path(config.runs) / config.name
    write_config(config, folder)
    seed_everything(config.seed, verbose=False)
    data = AlignData(config.data, encoders_of(config), plan_of(config))
    data.setup()
    require_two_modalities(config, data)
    run = build_run(config, data.vocabulary)
    task = AlignTask(run)
    require_fitting(task, config.optim.rates, "optim.rates")
    freeze(task, config.train.freeze)
    evaluated = {split: data.open(split) for split in data.evaluation_splits}
    data.cache_features(run.model.encoders, {config.data.train: data.train, **evaluated})
    trainer = build_trainer(config.train, folder, callbacks(config, task, data), config.resume)
    fit(trainer, task, data, folder, config.resume)
    if config.resume and trainer.global_step < config.train.steps:
        raise ValueError(
            f"{folder} has finished with {trainer.global_step} steps, of which its schedules are"
            f" fractions: a run of {config.train.steps} needs another --name and no --resume"
        )
    if trainer.is_global_zero:
        save_run(run, folder)
        show(evaluate_run(run, data, evaluated, folder, started))
        print(f"report: {folder / 'report.html'}")


def require_two_modalities(config: AlignConfig, data: AlignData) -> None:
    """Raises ValueError where the training split and the model have fewer than two modalities in common."""
    there = {m for m in data.encoders if m in data.readers and data.readers[m].source in data.train.modalities}
    there |= set(data.encoders) & data.train.modalities
    if len(there) < 2:
        raise ValueError(
            f"{data.train.name} has {', '.join(sorted(data.train.modalities))}, the model"
            f" {', '.join(config.model.modalities)}: to be aligned, two must be in both"
        )


def callbacks(config: AlignConfig, task: AlignTask, data: AlignData) -> list[Callback]:
    """Averaged weights, and first-stage retrieval on the validation split as training goes, where asked for."""
    found: list[Callback] = []
    train = config.train
    if train.ema:
        found.append(WeightAverage(train.ema, start=train.steps // 10))
    if train.evaluate_every:
        split = config.data.val

        def score() -> dict[str, float]:
            return first_stage_metrics(task.run, data, data.open(split), split)

        found.append(PeriodicEvaluation(train.evaluate_every, score))
    return found
