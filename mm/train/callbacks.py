"""Callbacks around training steps: history, averaged weights, evaluations that may keep the best state, memory."""

import csv
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kernels.collectives import pipeline
from mm.parallel.experts import local
from mm.parallel.shard import divided_like
from mm.parallel.stages import whole_tensors
from mm.train.layouts import whole_root
from mm.train.memory import memory_in_use

logger = logging.getLogger(__name__)


def moving(task: LightningModule) -> dict[str, Tensor]:
    """The parameters that train, by name, detached; they share memory with the task."""
    return {name: p.detach() for name, p in task.named_parameters() if p.requires_grad}


def snapshot(task: LightningModule) -> dict[str, Tensor]:
    """A copy of what training changes: the parameters that train, and all buffers."""
    changing = {**moving(task), **dict(task.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in changing.items()}


@torch.no_grad()
def restore(task: LightningModule, state: dict[str, Tensor]) -> None:
    """Put a state back into a task.

    Args:
        task: is changed in place.
        state: tensors by name, as `snapshot` takes them; whatever it lacks keeps its value.
    """
    changing = {**moving(task), **dict(task.named_buffers())}
    for name, tensor in changing.items():
        if name in state:
            tensor.copy_(state[name])


class TrainingMode(Callback):
    """Decide the mode of every module once, where a fit starts, and log it with device and precision.

    Lightning (2.2 and later) trains each module in the mode that it finds: a run that was loaded, or evaluated before
    it trains, would go on in evaluation mode, without dropout. What stands still says so in its own `train`.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the task into training mode, after a checkpoint was read."""
        pl_module.train()
        if trainer.is_global_zero:
            still = ", ".join(standing(pl_module)) or "none"
            training = sum(module.training for module in pl_module.modules())
            logger.info(
                "training on %s in %s, %d modules in training mode; in evaluation mode stay: %s",
                pl_module.device,
                trainer.precision,
                training,
                still,
            )


def standing(task: LightningModule) -> list[str]:
    """Names of the outermost modules in evaluation mode."""
    names: list[str] = []
    for name, module in task.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in names)
        if not module.training and not inside:
            names.append(name)
    return names


class KeepHistory(Callback):
    """Keep the rows of metrics.csv that a resumed run logged before its checkpoint: the logger truncates the file.

    Args:
        path: of metrics.csv.
    """

    def __init__(self, path: Path) -> None:
        self.rows: list[dict[str, str]] = []
        if path.is_file():
            with path.open() as file:
                self.rows.extend(csv.DictReader(file))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the old rows again, once."""
        rows = self.rows
        self.rows = []
        if trainer.logger is None:
            return
        for row in rows:
            step = int(row.pop("step"))
            if step >= trainer.global_step:
                continue
            values = {name: float(value) for name, value in row.items() if value}
            trainer.logger.log_metrics(values, step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the old rows of a run that was killed in its evaluation: it has no step left, training never starts."""
        self.on_train_start(trainer, pl_module)


class WeightAverage(Callback):
    """Exponential moving average of the parameters that train; buffers keep their newest values.

    After fitting, the average is left in the task. Its own state is in the checkpoints, which are read on the CPU: it
    follows the parameters to their device.

    Args:
        decay: weight of the average against the newest parameters, in [0, 1).
        start: the last step that is not averaged.
    """

    def __init__(self, decay: float, start: int = 0) -> None:
        self.update = get_ema_multi_avg_fn(decay)
        self.start = start
        self.updates = 0
        self.averaged: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Fold the step's parameters into the average."""
        if trainer.global_step <= self.start:
            return
        now = moving(pl_module)
        if self.averaged:
            averaged = []
            for name, parameter in now.items():
                self.averaged[name] = divided_like(self.averaged[name].to(parameter.device), parameter)
                averaged.append(local(self.averaged[name]))
            newest = [local(parameter) for parameter in now.values()]
            self.update(averaged, newest, self.updates)  # type: ignore[arg-type]
        else:
            self.averaged = {name: parameter.clone() for name, parameter in now.items()}
        self.updates += 1

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        restore(pl_module, self.averaged)

    def state_dict(self) -> dict[str, Any]:
        return {"averaged": dict(whole_tensors(self.averaged, pipeline())), "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.averaged = state_dict["averaged"]
        self.updates = state_dict["updates"]


class PeriodicEvaluation(Callback):
    """Evaluate every so many steps and log the figures as `val/<name>`.

    Args:
        every: steps between evaluations; 0 evaluates after the last step only, if at all.
        score: evaluates the task as it is now, and returns figures by name.
        share: of the time of training, that evaluations may take; None for any. With one, the last step has none:
            the run is evaluated behind it anyway.
    """

    def __init__(self, every: int, score: Callable[[], dict[str, float]], share: float | None = None) -> None:
        self.every = every
        self.score = score
        self.share = share
        self.seconds = 0.0
        """That evaluations have taken."""
        self.last = 0.0
        """That the last one took."""
        self.began = time.perf_counter()
        self.first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The time of training begins."""
        self.began = time.perf_counter()
        self.first = trainer.global_step

    def is_affordable(self, trainer: Trainer) -> bool:
        """Whether another evaluation like the last one stays within the share of what training will take."""
        if self.share is None:
            return True
        trained = time.perf_counter() - self.began - self.seconds
        whole = trained * (trainer.max_steps - self.first) / max(1, trainer.global_step - self.first)
        if self.seconds + self.last <= self.share * whole:
            return True
        logger.info(
            "validation at step %d skipped: it takes %.0f s, training %.0f s in all; --train.evaluate_every N has it",
            trainer.global_step,
            self.last,
            whole,
        )
        return False

    def timed_score(self) -> dict[str, float]:
        """The figures, and note what they took."""
        started = time.perf_counter()
        found = self.score()
        self.last = time.perf_counter() - started
        self.seconds += self.last
        return found

    def is_due(self, trainer: Trainer) -> bool:
        """Whether the step that ended is followed by an evaluation."""
        if self.share is not None and trainer.global_step == trainer.max_steps:
            return False
        return self.every > 0 and trainer.global_step % self.every == 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Evaluate, on all ranks together: they divide the split, and may divide the model."""
        if self.is_due(trainer) and trainer.strategy.broadcast(self.is_affordable(trainer)):
            with whole_root(pl_module):
                found = self.timed_score()
            pl_module.train()
            figures = {f"val/{name}": value for name, value in found.items()}
            pl_module.log_dict(figures, rank_zero_only=True)


class KeepBest(PeriodicEvaluation):
    """Evaluate every so many steps and after the last one, and leave the best state in the task.

    Args:
        every: steps between evaluations; 0 evaluates after the last step only.
        score: evaluates the task as it is now, and returns figures by name.
        metric: the figure whose largest value marks the best state.
        average: the weights that are evaluated and kept; None takes those of the step.
        patience: evaluations without a better state after which training stops; 0 for none.
    """

    def __init__(
        self,
        every: int,
        score: Callable[[], dict[str, float]],
        metric: str,
        average: WeightAverage | None = None,
        patience: int = 0,
    ) -> None:
        super().__init__(every, score)
        self.metric = metric
        self.average = average
        self.patience = patience
        self.kept: dict[str, Tensor] = {}
        self.value = float("-inf")
        self.step = 0
        self.stale = 0

    def is_due(self, trainer: Trainer) -> bool:
        """Also after the last step."""
        return super().is_due(trainer) or trainer.global_step == trainer.max_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Evaluate, keep the state if it is the best one so far, and go on from the newest one."""
        if not self.is_due(trainer):
            return
        newest = snapshot(pl_module)
        if self.average is not None:
            restore(pl_module, self.average.averaged)
        value = self.timed_score()[self.metric]
        pl_module.log("val/selected", value)
        self.stale += 1
        if value > self.value:
            self.value = value
            self.step = trainer.global_step
            self.stale = 0
            self.kept = snapshot(pl_module)
        restore(pl_module, newest)
        pl_module.train()
        if self.patience and self.stale >= self.patience:
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        restore(pl_module, self.kept)

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept, "value": self.value, "step": self.step, "stale": self.stale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kept = state_dict["kept"]
        self.value = state_dict["value"]
        self.step = state_dict["step"]
        self.stale = state_dict["stale"]


class PeakMemory(Callback):
    """Record the largest memory in use after any backward or step, in bytes."""

    bytes = 0

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bytes = max(self.bytes, memory_in_use(pl_module.device))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        self.bytes = max(self.bytes, memory_in_use(pl_module.device))
