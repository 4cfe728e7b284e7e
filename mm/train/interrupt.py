"""A signal during training: a checkpoint after the step, then the end of the process in one line."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

from mm.artifacts.interrupted import Interrupted

KEPT = "stopped-step={step}.ckpt"


class StopOnSignal(Callback):
    """After SIGTERM or Ctrl-C: writes a checkpoint when the step is done and raises `Interrupted`.

    The second signal is handled as it was before training.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.checkpoints = folder / "checkpoints"
        self.received = 0
        self.end: Interrupted | None = None
        self.previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals, also from Lightning, which ends with code 0 after SIGTERM."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self.previous[number] = signal.signal(number, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler: remember the signal."""
        self.received = number
        self.give_back()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Keep a checkpoint where any rank has received a signal.

        Here and not between two steps: Lightning counts a step on when it reads a checkpoint, as of this hook.
        """
        number = self.received
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(number > 0, all=False)
            number = number or int(stop) * signal.SIGTERM
        if number:
            step = trainer.global_step
            trainer.save_checkpoint(self.checkpoints / KEPT.format(step=step))
            where = f"after step {step} of {trainer.max_steps}, which is kept"
            self.end = Interrupted(number, where, resumable=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """End training before the next step, when the last one's row of metrics.csv is written."""
        if self.end is not None:
            raise self.end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End it after the last step, too: what follows is evaluation."""
        if self.end is not None:
            raise self.end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what earlier stops kept: the run has finished."""
        if trainer.is_global_zero:
            for path in self.checkpoints.glob(KEPT.format(step="*")):
                trainer.strategy.remove_checkpoint(path)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.give_back()

    def give_back(self) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}
