"""What is seen of a run while it trains: a line of progress, and the loggers that its figures go to."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from mm.artifacts.settings import read_text, read_yaml
from mm.config import LoggerName
from mm.optional import require
from mm.progress import Course
from mm.train.callbacks import PeriodicEvaluation
from mm.train.memory import known_memory

PACKAGES = ("tensorboard", "wandb")
"""Loggers beside metrics.csv, each of which is a package and an extra of its name."""

SHOWN = {"loss": "train/total", "stage": "stage"}
"""What the line ends with: in which word, which metric."""


def require_logger(name: LoggerName) -> None:
    """Raise UserError, before anything is computed, where a logger's package is not installed."""
    if name in PACKAGES:
        require(name, extra=name)


def loggers_of(name: LoggerName, folder: Path, every: int) -> list[Logger]:
    """The loggers of a run: metrics.csv, which its report is drawn from, and what `train.logger` names.

    Args:
        name: TensorBoard's files lie in <folder>/tensorboard, W&B's in <folder>/wandb, where WANDB_MODE=offline sends
            nothing.
        folder: of the run, with its config.yaml.
        every: steps between two writes of metrics.csv.
    """
    found: list[Logger] = [CSVLogger(folder.parent, name=folder.name, version="", flush_logs_every_n_steps=every)]
    if name == "tensorboard":
        found.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    if name == "wandb":
        settings = read_yaml(read_text(folder / "config.yaml"), "config.yaml")
        project = os.environ.get("WANDB_PROJECT", "mm-align")
        found.append(WandbLogger(folder.name, save_dir=folder, project=project, config=settings))
    return found


class Following(Callback):
    """Draw or log how far training is, and log images per second and memory.

    Args:
        images: per step, over all ranks.
        callbacks: beside this one; what their evaluations take is no time of training.
    """

    def __init__(self, images: int, callbacks: Sequence[Callback]) -> None:
        self.images = images
        self.evaluations = [each for each in callbacks if isinstance(each, PeriodicEvaluation)]
        self.course: Course | None = None
        self.trainer: Trainer | None = None
        self.step = 0
        self.clock = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the line, behind the steps of a run that is resumed."""
        self.trainer = trainer
        self.step = trainer.global_step
        self.clock = self.now()
        if trainer.is_global_zero:
            steps = trainer.max_steps
            self.course = Course("training: steps", steps, done=self.step, note=self.note)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Count the step; where the logger writes, log what was measured since it last did."""
        if self.course is not None:
            self.course.advance(1)
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]  # of Lightning's trainer
            return
        now = self.now()
        rate = self.images * (trainer.global_step - self.step) / max(now - self.clock, 1e-9)
        self.step = trainer.global_step
        self.clock = now
        measured = {"images_per_second": rate}
        memory = known_memory(pl_module.device)
        if memory is not None:
            measured["memory_gb"] = memory / 1e9
        pl_module.log_dict(measured, rank_zero_only=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the line, and a run of W&B, which would go on until the process ends."""
        self.end()
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the line before an error is said."""
        self.end()

    def end(self) -> None:
        """Take the line from the terminal."""
        if self.course is not None:
            self.course.__exit__()
        self.course = None

    def now(self) -> float:
        """Seconds, of which evaluations take none."""
        return time.perf_counter() - sum(each.seconds for each in self.evaluations)

    def note(self) -> str:
        """The loss and the stage. Asked for now and then: it waits for the device."""
        assert self.trainer is not None
        found: dict[str, Any] = dict(self.trainer.callback_metrics)
        said = [f"{name} {float(found[key]):.4g}" for name, key in SHOWN.items() if key in found]
        return ", ".join(said)
