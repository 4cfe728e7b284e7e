"""What is said of an index is measured, and has its limit beside it."""

import json
from pathlib import Path

import pytest

from mm.bench.index import IndexConfig, bench_index


def test_searches_and_builds_are_measured_beside_their_limits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.json"
    bench_index(IndexConfig((50, 300), width=8, repeats=2, images=6, side=32, device="cpu", json=str(rows)))
    found = json.loads(rows.read_text())
    assert [(row["vectors"], row["queries"]) for row in found["search"]] == [(50, 1), (50, 16), (300, 1), (300, 16)]
    for row in found["search"]:
        assert row["milliseconds"] > 0 and row["limit_milliseconds"] >= 0 and row["gigabytes_a_second_read"] > 0
    rates = found["build"]["images_a_second"]
    assert set(rates) == {"build", "limit", "reading", "model", "again"} and min(rates.values()) > 0
    assert rates["limit"] < min(rates["reading"], rates["model"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "the best 10 of N vectors" in printed and "6 JPEGs of 32 pixels" in printed
    assert found["device"] and found["date"]
