"""bench_eval as a user runs it, on a toy ground truth and without the packages it is measured beside."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eval.ground_truth import GroundTruth, Matches
from mm.bench import eval as bench


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_rows_are_written_and_shown(
    script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.repeat(np.arange(12) * 3, 5)
    truth = GroundTruth(np.arange(60), images, {"cxc": Matches({0: [0]}, {0: [0]})})
    own = {name: run for name, run in bench.IMPLEMENTATIONS.items() if name not in bench.PEERS}
    monkeypatch.setattr(bench.GroundTruth, "load", lambda folder: truth)
    monkeypatch.setattr(bench, "matmul_rate", lambda _: 1e9)
    monkeypatch.setattr(bench, "IMPLEMENTATIONS", own)
    monkeypatch.setattr(bench, "PEERS", ())
    script("bench_eval.py", "--width", 8, "--repeats", 1, "--threads", 1, "--json", tmp_path / "rows.json")
    found = json.loads((tmp_path / "rows.json").read_text())
    assert [row["implementation"] for row in found["rows"]] == list(own) and len(own) > 1
    assert (found["images"], found["captions"], found["width"]) == (12, 70, 8)
    assert all(row["milliseconds"] >= 0 and row["peak_bytes"] > 0 for row in found["rows"])
    assert "ours" in capsys.readouterr().out


def test_ground_truth_that_is_not_there_is_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    line = refused("bench_eval.py", "--ground_truth", tmp_path, "--width", 8)
    assert str(tmp_path) in line and "no ground truth there" in line
