"""The one builder of a Trainer: progress, loggers, and checkpoints to resume from."""

import logging
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from kernels.errors import UserError
from mm.config import TrainConfig
from mm.device import Precision, is_reduced
from mm.parallel.layout import ParallelConfig, is_layout
from mm.parallel.state import as_file
from mm.train.callbacks import KeepHistory, TrainingMode
from mm.train.checkpoint import SyncedCheckpointIO, regular_checkpoints
from mm.train.following import Following, loggers_of
from mm.train.interrupt import StopOnSignal
from mm.train.layouts import LayoutStrategy
from mm.train.ranks import one_end
from mm.train.resume import AskedRates, newest_checkpoint

DDP_STARTS: dict[str, Literal["popen", "fork", "spawn"]] = {"ddp": "popen", "ddp_fork": "fork", "ddp_spawn": "spawn"}
"""How each of Lightning's names for DDP starts its processes."""
BROKEN = ("fsdp", "deepspeed")
"""Beginnings of Lightning's names for engines that gather parameters around modules that return tensors alone."""
TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others: longer than an evaluation on the first one, not for ever."""


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
    follow = Following(train.batch_size, callbacks)
    every = min(10, train.steps)
    try:
        return Trainer(
            max_steps=train.steps,
            max_epochs=1,
            accelerator=device.type,
            devices=train.devices,
            num_nodes=train.num_nodes,
            strategy=strategy_of(train, device),
            precision=trainer_precision(train.precision, device),
            use_distributed_sampler=False,
            logger=loggers_of(train.logger, folder, every),
            enable_progress_bar=False,
            log_every_n_steps=every,
            callbacks=[TrainingMode(), follow, checkpoints, *callbacks, *resumed, StopOnSignal(folder)],
            plugins=[SyncedCheckpointIO()],
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise UserError(f"train.devices or train.strategy: {error}") from error


def fit(trainer: Trainer, task: LightningModule, data: LightningDataModule, folder: Path, resume: bool) -> None:
    """Train, from the newest checkpoint in `folder` with `resume`; the task stays on its device.

    Raises ValueError where the folder holds no checkpoint.
    """
    checkpoint = newest_checkpoint(folder) if resume else None
    with one_end(), TemporaryDirectory() as temporary:
        if checkpoint is not None and checkpoint.is_dir() and not isinstance(trainer.strategy, LayoutStrategy):
            checkpoint = as_file(checkpoint, Path(temporary) / "whole.ckpt")
        trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)
    task.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU.


def strategy_of(train: TrainConfig, device: torch.device) -> DDPStrategy | LayoutStrategy | str:
    """The strategy that `train.strategy` names: of DDP one for steps that leave parameters unused.

    A stage of the schedule does not read the heads of later ones. `auto` is DDP on several devices.

    Raises:
        UserError: it is one that would train something else in silence.
    """
    name = train.strategy
    if is_layout(name):
        return LayoutStrategy(ParallelConfig.of_word(name), TIMEOUT)
    if name.startswith(BROKEN):
        raise UserError(
            f"train.strategy {name} does not find the tensors in what our modules return: ZeRO-3 is a layout such as"
            " fsdp8, see `mm-align plan`"
        )
    if name == "auto" and device_count(train, device) > 1:
        name = "ddp"
    if name not in DDP_STARTS:
        return name
    # Convolutions that read channels last give such gradients; DDP copies them, which is all that it warns of.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DDPStrategy(start_method=DDP_STARTS[name], find_unused_parameters=True, timeout=TIMEOUT)


def device_count(train: TrainConfig, device: torch.device) -> int:
    """How many processes a run takes on all its nodes; `auto` is every GPU of a node, or one CPU."""
    count = train.devices
    if not isinstance(count, int):
        count = torch.cuda.device_count() if device.type == "cuda" else 1
    return count * train.num_nodes


def trainer_precision(precision: Precision, device: torch.device) -> Literal["bf16-mixed", "32-true"]:
    """`train.precision` on a device, in Lightning's words."""
    return "bf16-mixed" if is_reduced(precision, device) else "32-true"
