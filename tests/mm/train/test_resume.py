"""Going on where a run stopped."""

import os
import zipfile
from pathlib import Path

import pytest
import torch

from mm.train.resume import newest_checkpoint


def checkpoint(path: Path, age: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.save({"global_step": age, "state_dict": {"weight": torch.rand(1000)}}, path)
    os.utime(path, (1000 - age, 1000 - age))
    return path


def others(folder: Path) -> list[bytes]:
    """Zip files whose parts are whole, and which are no checkpoint."""
    path = folder / "other"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "another archive")
    archive = path.read_bytes()
    found = [archive, archive.replace(b"readme.txt", b"readm\xff.txt")]
    for content in ([1, 2], {"weight": torch.zeros(2)}, print):
        torch.save(content, path)
        found.append(path.read_bytes())
    path.unlink()
    return found


def test_the_newest_whole_checkpoint_is_resumed_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = (checkpoint(tmp_path / "checkpoints" / f"{n}.ckpt", age) for n, age in (("z", 9), ("a", 1)))
    assert newest_checkpoint(tmp_path) == new
    whole = new.read_bytes()
    at = len(whole) // 2
    (new.parent / "last.ckpt").symlink_to("deleted.ckpt")
    for spoiled in (whole[:-50], whole[: at // 2], whole[:at] + bytes(200) + whole[at + 200 :], b"", *others(tmp_path)):
        new.write_bytes(spoiled)
        os.utime(new, (999, 999))
        caplog.clear()
        assert newest_checkpoint(tmp_path) == old
        (line,) = caplog.messages
        assert line.endswith(f"a.ckpt is not whole: going on from {old}")


def test_no_checkpoint_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no whole checkpoint: leave --resume out"):
        newest_checkpoint(tmp_path)
