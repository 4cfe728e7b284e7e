"""A checkpoint is whole or it is not there."""

from pathlib import Path

import pytest
import torch

from mm.train.checkpoint import SyncedCheckpointIO


def test_what_breaks_while_a_checkpoint_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "last.ckpt"
    SyncedCheckpointIO().save_checkpoint({"global_step": 1}, path)

    def half(checkpoint: dict, file: object) -> None:
        file.write(b"half of it")  # type: ignore[attr-defined]
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space"):
        SyncedCheckpointIO().save_checkpoint({"global_step": 2}, path)
    assert torch.load(path, weights_only=True) == {"global_step": 1}


def test_names_reach_the_disk_after_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "a.ckpt", []
    monkeypatch.setattr("os.fsync", lambda number: synced.append(path.exists()))
    SyncedCheckpointIO().save_checkpoint({}, path)
    assert synced == [False, True]  # the file's content, then the folder's new name
