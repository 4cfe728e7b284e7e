"""Rules beside each other: small, but every one of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mm.bench.batching import OURS, BatchingBench, bench_batching, interval


def test_every_rule_is_measured_and_other_traces_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = tmp_path / "trace.csv"
    rows = [f"{0.001 * number},{4 + number % 20}" for number in range(300)]
    recorded.write_text("\n".join(["TIMESTAMP,ContextTokens", *rows]))
    out = tmp_path / "rows.json"
    both = BatchingBench(("bursty",), recorded, (0.5,), seconds=0.2, seeds=2, json=str(out))
    bench_batching(both)
    bench_batching(replace(both, traces=("recorded",), loads=(0.5, 0.9)))
    found = json.loads(out.read_text())
    assert set(found["traces"]) == {"bursty", "recorded"} and found["capacity"] > 1000
    at = found["traces"]["recorded"]["0.5"]
    assert len(at) == 8 and at[OURS]["ours_less"] == [0.0, 0.0]
    assert all(each["goodput"][0] <= at["oracle"]["goodput"][0] + 1e-6 for each in at.values())
    assert "bursty: goodput" in capsys.readouterr().out


def test_an_interval_is_student_s() -> None:
    assert interval(np.array([1.0, 2.0, 3.0])) == [2.0, pytest.approx(4.303 / 3**0.5, abs=1e-3)]
