"""What happens around training steps: history, averaged weights, evaluations that may keep the best state, memory."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mm.train.memory import memory_in_use


def moving(task: LightningModule) -> dict[str, Tensor]:
    """The parameters that train, by name."""
    return {name: p.detach() for name, p in task.named_parameters() if p.requires_grad}


def snapshot(task: LightningModule) -> dict[str, Tensor]:
    """What training changes: the parameters that move, and all buffers."""
    changing = {**moving(task), **dict(task.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in changing.items()}


@torch.no_grad()
def restore(task: LightningModule, state: dict[str, Tensor]) -> None:
    """Put back what `snapshot` took; of `state` what it lacks stays."""
    changing = {**moving(task), **dict(task.named_buffers())}
    for name, tensor in changing.items():
        if name in state:
            tensor.copy_(state[name])


class KeepHistory(Callback):
    """Of a resumed run's metrics, what was logged before the checkpoint: the logger alone would start the file anew."""

    def __init__(self, path: Path) -> None:
        self.rows = list(csv.DictReader(path.open())) if path.is_file() else []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = self.rows
        self.rows = []
        if trainer.logger is None:
            return
        for row in rows:
            step = int(row.pop("step"))
            if step < trainer.global_step:
                values = {name: float(value) for name, value in row.items() if value}
                trainer.logger.log_metrics(values, step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was killed in its evaluation has no step left, and training does not start."""
        self.on_train_start(trainer, pl_module)


class WeightAverage(Callback):
    """Exponential moving average of the parameters that train, over the steps after `start`; buffers are the newest.

    After fitting, the average is left in the task. Its own state is in the checkpoints.
    """

    def __init__(self, decay: float, start: int = 0) -> None:
        self.update = get_ema_multi_avg_fn(decay)
        self.start = start
        self.updates = 0
        self.averaged: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step <= self.start:
            return
        now = moving(pl_module)
        if self.averaged:
            self.update([self.averaged[name] for name in now], list(now.values()), self.updates)  # type: ignore[arg-type]
        else:
            self.averaged = {name: parameter.clone() for name, parameter in now.items()}
        self.updates += 1

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        restore(pl_module, self.averaged)

    def state_dict(self) -> dict[str, Any]:
        return {"averaged": self.averaged, "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.averaged = state_dict["averaged"]
        self.updates = state_dict["updates"]


class PeriodicEvaluation(Callback):
    """Calls `score` every `every` steps and logs what it gives.

    Args:
        every: steps between evaluations; 0 evaluates after the last step only, if at all.
        score: evaluates the task as it is now; -> named figures.
    """

    def __init__(self, every: int, score: Callable[[], dict[str, float]]) -> None:
        self.every = every
        self.score = score

    def is_due(self, trainer: Trainer) -> bool:
        return self.every > 0 and trainer.global_step % self.every == 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if self.is_due(trainer) and trainer.is_global_zero:
            found = self.score()
            pl_module.train()
            pl_module.log_dict({f"val/{name}": value for name, value in found.items()}, rank_zero_only=True)


class KeepBest(PeriodicEvaluation):
    """A periodic evaluation, also after the last step, that leaves the state with the largest `metric` in the task.

    Args:
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
        return super().is_due(trainer) or trainer.global_step == trainer.max_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if not self.is_due(trainer):
            return
        newest = snapshot(pl_module)
        if self.average is not None:
            restore(pl_module, self.average.averaged)
        value = self.score()[self.metric]
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
    """The most memory in use after any backward, in bytes."""

    bytes = 0

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bytes = max(self.bytes, memory_in_use())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        self.bytes = max(self.bytes, memory_in_use())
