"""soak as a user calls it: what it does is tested with mm.bench.soak."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def test_without_either_part_nothing_is_started(
    script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = ("--kills", 0, "--memory_steps", 0, "--presence", "false", "--corrupt", 0)
    script("soak.py", *nothing, "--runs", tmp_path / "runs", "--json", tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text()).keys() == {"commit", "hardware"}
    assert "commit" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_runs_that_are_there_are_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    assert "killed exists: give another --runs, or remove it" in refused("soak.py", "--runs", tmp_path)
