"""The training of an adapted run, of which the best state is kept."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Callback, LightningDataModule

from mm.adapt.config import AdaptConfig
from mm.adapt.sets import EvaluationSet
from mm.adapt.task import AdaptTask
from mm.train.callbacks import KeepBest, PeakMemory, WeightAverage
from mm.train.trainer import build_trainer, fit


@dataclass(frozen=True)
class Training:
    """minutes it took; peak_memory in bytes; step and value of the state that is kept."""

    minutes: float
    peak_memory: int
    step: int
    value: float

    def described(self, domain: EvaluationSet) -> dict[str, Any]:
        """For result.json."""
        selected = {"metric": domain.metric, "on": domain.dataset.name, "step": self.step, "value": self.value}
        return {"minutes": self.minutes, "peak_memory_gib": self.peak_memory / 2**30, "selected": selected}


def train_keeping_best(
    config: AdaptConfig, task: AdaptTask, data: LightningDataModule, domain: EvaluationSet, folder: Path
) -> Training:
    """Train where the task is, evaluating on the domain; the best state is left in the task, of averaged weights with
    `train.ema`.
    """
    train = task.config.train
    callbacks: list[Callback] = []
    average = None
    if train.ema:
        average = WeightAverage(train.ema)
        callbacks.append(average)

    def metrics() -> dict[str, float]:
        return domain.metrics(task.run)

    best = KeepBest(train.evaluation_steps, metrics, domain.metric, average, config.patience)
    memory = PeakMemory()
    callbacks.extend([best, memory])
    started = time.perf_counter()
    trainer = build_trainer(train, task.run.device, folder, callbacks, config.resume)
    fit(trainer, task, data, folder, config.resume)
    minutes = (time.perf_counter() - started) / 60
    return Training(minutes, memory.bytes, best.step, best.value)
