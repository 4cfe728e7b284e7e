"""scripts/prepare_scenes.py: writes what was asked for; a user's mistake is one line and exit code 2."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from mm.data import open_split

prepare_scenes = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "prepare_scenes.py"))["prepare_scenes"]


@pytest.mark.parametrize("layout", ["shards", "coco"])
def test_only_the_splits_asked_for_are_written(tmp_path: Path, layout: str) -> None:
    prepare_scenes(tmp_path / "scenes", layout=layout, train=0, val=2, seen=0, test=3)
    assert [len(open_split(tmp_path / "scenes", split)) for split in ("val", "test")] == [2, 3]
    with pytest.raises(FileNotFoundError):
        open_split(tmp_path / "scenes", "train")


@pytest.mark.parametrize(
    "words, named",
    [
        (["--val", "2"], "name another folder"),
        (["--val", "many"], "val"),
        (["--layuot", "coco"], "--layuot"),
        (["--layout", "tar"], "layout"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    refused: Callable[..., str], tmp_path: Path, words: list[str], named: str
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert named in refused("prepare_scenes.py", "--root", tmp_path, *words)
