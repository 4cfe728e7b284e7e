"""Feeding is measured beside a limit that is told from the same files, never how fast anything was."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mm.bench import generated


def test_batches_are_measured_beside_the_limit(
    script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated, "SIZE", (48, 64))
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    out = tmp_path / "rows.json"
    words = ["--images", 12, "--batches", 2, "--train.batch_size", 4, "--image.size", 32, "--data.workers", 2]
    script("bench_feeding.py", *words, "--data.cache", tmp_path, "--train.accelerator", "cpu", "--json", out)
    found, shown = json.loads(out.read_text()), capsys.readouterr().out
    rates = [row["images_per_second"] for row in found["rows"]]
    assert [(row["what"], row["processes"]) for row in found["rows"]] == [
        ("decoding", 1),
        ("decoding, resizing", 1),
        ("batches", 1),
        ("batches", 2),
    ]
    assert found["limit_images_per_second"] == pytest.approx(2 * rates[1], rel=0.01)
    assert min(rates) > 0 and "of the limit" in shown


def test_a_setting_that_no_batch_depends_on_is_refused(refused: Callable[..., str]) -> None:
    assert "optim.clip=2.0 has no effect" in refused("bench_feeding.py", "--optim.clip", "2")
