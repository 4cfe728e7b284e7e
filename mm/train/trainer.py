"""The one builder of a Trainer: progress, metrics.csv, and checkpoints to resume from."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mm.config import TrainConfig
from mm.device import Precision, is_reduced
from mm.train.callbacks import KeepHistory, TrainingMode
from mm.train.checkpoint import SyncedCheckpointIO, regular_checkpoints
from mm.train.interrupt import StopOnSignal
from mm.train.resume import AskedRates, newest_checkpoint


def build_trainer(
    train: TrainConfig, device: torch.device, folder: Path, callbacks: Sequence[Callback], resume: bool
) -> Trainer:
    """A trainer of a run.

    Args:
        train: how long and in what precision it trains, and on how many devices.
        device: where the task is, the first of the run's devices.
        folder: of the run.
        callbacks: beside those that every run has.
        resume: whether the run in the folder goes on.

    Raises:
        ValueError: this machine does not have the devices or the strategy.
    """
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
            accelerator=device.type,
            devices=train.devices,
            strategy=train.strategy,
            precision=trainer_precision(train.precision, device),
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
        raise ValueError(f"train.devices or train.strategy: {error}") from error


def fit(trainer: Trainer, task: LightningModule, data: LightningDataModule, folder: Path, resume: bool) -> None:
    """Train, from the newest checkpoint in `folder` with `resume`; the task stays on its device.

    Raises ValueError where the folder holds no checkpoint.
    """
    checkpoint = newest_checkpoint(folder) if resume else None
    device = next(task.parameters()).device
    trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)
    task.to(device)  # Lightning leaves it on the CPU.


def trainer_precision(precision: Precision, device: torch.device) -> Literal["bf16-mixed", "32-true"]:
    """`train.precision` on a device, in Lightning's words."""
    return "bf16-mixed" if is_reduced(precision, device) else "32-true"
