"""Checkpoints that neither a killed process nor a lost power supply spoils: written to a temporary name, synced to the
disk, then renamed; the one before stays until the next but one is whole."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO


class SyncedCheckpointIO(TorchCheckpointIO):
    """Lightning's own renames too, but what it renames may not have reached the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name, too
        finally:
            os.close(folder)


def regular_checkpoints(folder: Path, steps: int) -> ModelCheckpoint:
    """Every `steps` steps into folder/checkpoints, of which the two newest are kept; one at the end of shorter runs."""
    return ModelCheckpoint(
        folder / "checkpoints", every_n_train_steps=steps, monitor="step", mode="max", save_top_k=2, save_last="link"
    )
