"""scripts/prepare_scenes.py: writes what was asked for; a user's mistake is one line and exit code 2."""

import runpy
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


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        prepare_scenes(tmp_path, val=2)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.count("\n") == 1 and "name another folder" in said
