"""The Trainer that every script trains with: progress, metrics.csv, and checkpoints to resume from."""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mm.config import TrainConfig
from mm.data.module import trainer_precision
from mm.train.checkpoint import SyncedCheckpointIO, regular_checkpoints


def build_trainer(train: TrainConfig, folder: Path, callbacks: list[Callback], resume: bool) -> Trainer:
    """Raises ValueError on an accelerator or strategy that this machine does not have."""
    history = [KeepHistory(folder / "metrics.csv")] if resume else []
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
            callbacks=[RichProgressBar(), regular_checkpoints(folder, train.checkpoint_every), *callbacks, *history],
            plugins=[SyncedCheckpointIO()],
            num_sanity_val_steps=0,
            sync_batchnorm=True,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise ValueError(f"train.accelerator, train.devices or train.strategy: {error}") from error


class KeepHistory(Callback):
    """Of a resumed run's metrics, what was logged before the checkpoint: the logger alone would start the file anew."""

    def __init__(self, path: Path) -> None:
        self.rows = list(csv.DictReader(path.open())) if path.is_file() else []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows, self.rows = self.rows, []
        for row in rows if trainer.logger else ():
            step = int(row.pop("step"))
            if step < trainer.global_step:
                trainer.logger.log_metrics({k: float(v) for k, v in row.items() if v}, step)  # type: ignore[union-attr]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was killed in its evaluation has no step left, and training does not start."""
        self.on_train_start(trainer, pl_module)


def require_same_settings(config: Any, folder: Path) -> None:
    """Raises ValueError, naming the first setting that differs, unless folder/config.yaml is of these settings."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"--resume true, but {folder} holds no run: leave --resume out to start it")
    stored, own = (dict(_flat(values)) for values in (yaml.safe_load(path.read_text()), asdict(config)))
    for name in sorted(own.keys() | stored.keys()):
        if name != "resume" and own.get(name) != stored.get(name):
            raise ValueError(
                f"--resume true, but {folder} was begun with {name}={stored.get(name)}, not"
                f" {own.get(name)}: give the same settings, or another --name and no --resume"
            )


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings by their dotted names; tuples are lists, as YAML has them."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, list(value) if isinstance(value, tuple) else value))
    return found
