"""Resume a run where it stopped: the newest whole checkpoint, and the learning rates that are asked for."""

import logging
import zipfile
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer

from kernels.errors import UserError
from mm.parallel.state import is_whole_folder

logger = logging.getLogger(__name__)


def newest_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint of a run, to resume from; newer ones that are not whole are logged.

    Args:
        folder: of the run.

    Raises:
        ValueError: the run has no whole checkpoint.
    """
    checkpoints = folder / "checkpoints"
    files = [path for path in checkpoints.glob("*.ckpt") if not path.is_symlink()]
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    spoiled: list[str] = []
    for path in files:
        if not is_whole(path):
            spoiled.append(str(path))
            continue
        if spoiled:
            names = " nor ".join(spoiled)
            logger.warning("checkpoint %s is not whole: going on from %s", names, path)
        return path
    raise UserError(f"--resume true, but {checkpoints} holds no whole checkpoint: leave --resume out to start the run")


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is neither cut off nor changed nor another file: every part of the zip file has its
    checksum, and together they are a state. Of a divided run it is a folder."""
    if checkpoint.is_dir():
        return is_whole_folder(checkpoint)
    try:
        with zipfile.ZipFile(checkpoint) as file:
            if file.testzip() is not None:
                return False
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except PermissionError:
        raise
    except Exception:  # zipfile raises NotImplementedError, zlib.error, UnicodeDecodeError … of what it is fed
        return False
    return isinstance(content, dict) and "state_dict" in content


class AskedRates(Callback):
    """A resumed run takes the learning rates of its settings: the optimizer's state in a checkpoint has its own."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the rates as they were built, before a checkpoint is read."""
        (optimizer,) = trainer.optimizers
        self.rates = [group["initial_lr"] for group in optimizer.param_groups]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put them back behind the checkpoint's, and say so where they differ."""
        (optimizer,) = trainer.optimizers
        stored = [group["initial_lr"] for group in optimizer.param_groups]
        if stored == self.rates:
            return
        (described,) = trainer.lr_scheduler_configs
        schedule = described.scheduler
        schedule.base_lrs = list(self.rates)
        for group, asked, before in zip(optimizer.param_groups, self.rates, stored, strict=True):
            group["initial_lr"] = asked
            group["lr"] *= asked / before
        logger.info("learning rate %g from step %d on, %g before", self.rates[0], trainer.global_step, stored[0])
