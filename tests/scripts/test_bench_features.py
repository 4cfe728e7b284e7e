"""Extraction is measured beside the trunk as it is and a limit, never how long anything took."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def test_extraction_is_measured_beside_the_trunk_as_it_is(
    script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.json"
    script("bench_features.py", "--image.size", 32, "--image.width", 16, "--images", 9, "--repeats", 1, "--json", out)
    found, shown = json.loads(out.read_text()), capsys.readouterr().out
    assert [row["implementation"] for row in found["rows"]] == ["ours", "folded only", "as it is"]
    for row in found["rows"]:
        assert row["milliseconds_an_image"] == pytest.approx(row["milliseconds"] / 9, abs=0.01)
    assert found["limit_milliseconds_an_image"] > 0 and "of the limit" in shown
