"""Going on where a run stopped."""

import os
from pathlib import Path

import pytest
import torch

from mm.train.resume import newest_checkpoint


def checkpoint(path: Path, age: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.save({"global_step": age, "weight": torch.rand(1000)}, path)
    os.utime(path, (1000 - age, 1000 - age))
    return path


def test_the_newest_whole_checkpoint_is_resumed_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = (checkpoint(tmp_path / "checkpoints" / f"{n}.ckpt", age) for n, age in (("z", 9), ("a", 1)))
    assert newest_checkpoint(tmp_path) == new
    whole = new.read_bytes()
    at = len(whole) // 2
    (new.parent / "last.ckpt").symlink_to("deleted.ckpt")
    for spoiled in (whole[:-50], whole[: at // 2], whole[:at] + bytes(200) + whole[at + 200 :], b""):
        new.write_bytes(spoiled)
        os.utime(new, (999, 999))
        caplog.clear()
        assert newest_checkpoint(tmp_path) == old
        (line,) = caplog.messages
        assert line.endswith(f"a.ckpt is not whole: going on from {old}")


def test_no_checkpoint_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no whole checkpoint: leave --resume out"):
        newest_checkpoint(tmp_path)
