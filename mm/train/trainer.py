"""The one builder of a Trainer: progress, metrics.csv, and checkpoints to resume from."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from kernels.dispatch import has_bf16
from mm.config import TrainConfig
from mm.train.callbacks import KeepHistory, TrainingMode
from mm.train.checkpoint import SyncedCheckpointIO, regular_checkpoints
from mm.train.interrupt import StopOnSignal
from mm.train.resume import AskedRates, newest_checkpoint


def build_trainer(train: TrainConfig, folder: Path, callbacks: Sequence[Callback], resume: bool) -> Trainer:
    """Raises ValueError on an accelerator or strategy that this machine does not have."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its import sets another
    resumed: list[Callback] = []
    if resume:
        resumed = [KeepHistory(folder / "metrics.csv"), AskedRates()]
    checkpoints = regular_checkpoints(folder, train.checkpoint_every)
    every = min(10, train.steps)
    try:
        return Trainer(
            max_steps=train.steps,
            max_epochs=1,
            accelerator=train.accelerator,
            devices=train.devices,
            strategy=train.strategy,
            precision=trainer_precision(train.precision),
            use_distributed_sampler=False,
            logger=CSVLogger(folder.parent, name=folder.name, version="", flush_logs_every_n_steps=every),
            log_every_n_steps=every,
            callbacks=[TrainingMode(), RichProgressBar(), checkpoints, *callbacks, *resumed, StopOnSignal(folder)],
            plugins=[SyncedCheckpointIO()],
            num_sanity_val_steps=0,
            sync_batchnorm=True,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise ValueError(f"train.accelerator, train.devices or train.strategy: {error}") from error


def fit(trainer: Trainer, task: LightningModule, data: LightningDataModule, folder: Path, resume: bool) -> None:
    """Train, from the newest checkpoint in `folder` with `resume`. Raises ValueError where it holds none."""
    checkpoint = newest_checkpoint(folder) if resume else None
    trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)


def trainer_precision(precision: Literal["auto", "fp32", "bf16"]) -> Literal["bf16-mixed", "32-true"]:
    """`train.precision` in Lightning's words."""
    if precision == "bf16" or (precision == "auto" and has_bf16("cpu")):
        return "bf16-mixed"
    return "32-true"
