"""The script writes the rows of every contest and shows a table of each."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kernels import bench
from kernels.testing import NearestCodeCase


def test_rows_are_written_and_shown(
    script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "NEAREST_CODE", NearestCodeCase(130, 8, 4))
    script("bench_kernels.py", "--only", "nearest_code", "--repeats", 1, "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    shown = " ".join(capsys.readouterr().out.split())  # a title may be wider than its table
    for metric in ("euclidean", "cosine"):
        for step in ("evaluation", "training step"):
            case = f"130x4, 8 codes, {metric}, {step}"
            found = [row["implementation"] for row in rows if row["case"] == case]
            assert found[:3] == ["ours", "reference", "limit"]
            assert f"nearest_code: {case}, float32, forward" in shown


def test_an_operation_nobody_knows_is_one_line(refused: Callable[..., str]) -> None:
    line = refused("bench_kernels.py", "--only", "softmax")
    assert "softmax" in line and "nearest_code" in line
