"""compare puts runs side by side on the same items, and refuses others."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from eval.protocols import Protocol

IDS = np.arange(40) * 3
PROTOCOL = Protocol("toy", "val", 40, 200, "5")


def write_run(folder: Path, noise: float, **changes: object) -> Path:
    """Captions are their image's vector and noise."""
    folder.mkdir()
    centre, rng = np.random.default_rng(99).standard_normal((40, 8)), np.random.default_rng(0)
    text = np.repeat(centre, 5, 0) + noise * rng.standard_normal((200, 8))
    np.savez(folder / "embeddings.npz", image=centre, text=text, image_ids=IDS, caption_image_ids=np.repeat(IDS, 5))
    protocol = replace(PROTOCOL, **changes)  # type: ignore[arg-type]
    (folder / "result.json").write_text(json.dumps({"protocol": {"val": asdict(protocol)}}))
    return folder


def test_less_noise_is_better_in_every_measure_and_significantly_in_some(
    script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write_run(tmp_path / "a", 1.5), write_run(tmp_path / "b", 0.5)
    script("compare.py", a, b, "--json", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    rows = found["differences"]
    assert found["base"] == str(a) and len(rows) == 6
    assert all(row["difference"] >= 0 and row["low"] <= row["difference"] <= row["high"] for row in rows)
    shown = capsys.readouterr().out
    assert rows[3]["p"] < 0.05 and "Difference to" in shown
    assert f"report: {tmp_path / 'compare-a-b.html'}" in shown
    assert "without settings does not say where its data is" in (tmp_path / "compare-a-b.html").read_text()
    script("compare.py", f"--runs=[{a}, {b}]")


def test_what_runs_take_stands_beside_what_they_lose(
    script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write_run(tmp_path / "a", 0.5), write_run(tmp_path / "b", 1.5)
    for folder, size in ((a, 100), (b, 25)):
        (folder / "model.safetensors").write_bytes(bytes(size))
    script("compare.py", a, b, "--json", tmp_path / "out.json")
    first, second = json.loads((tmp_path / "out.json").read_text())["light"]
    assert (first["bytes"], second["bytes"]) == (100, 25) and second["differences"]["RSUM"]["high"] < 0
    assert "bytes against RSUM" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"captions": 210}, {"trained_on": "trained on toy"}])
def test_two_protocols_do_not_share_a_column(refused: Callable[..., str], tmp_path: Path, change: dict) -> None:
    a, b = write_run(tmp_path / "a", 1.0), write_run(tmp_path / "b", 1.0, **change)
    assert f"{next(iter(change))}: " in refused("compare.py", a, b)


def test_a_run_of_older_code_is_compared_with_one_of_today(script: Callable[..., None], tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", 1.0, trained_on="trained on toy/train"), write_run(tmp_path / "b", 1.0)
    old = {"dataset": "toy/val", "split": "val", "images": 40, "captions": 200, "captions_per_image": 5.0}
    old |= {"recall": "any-hit", "rerank_depth": 3, "zero_shot": False, "trained_on": "toy/train", "skipped": {}}
    (b / "result.json").write_text(json.dumps({"protocol": {"val": old}}))
    script("compare.py", a, b)


def test_what_cannot_be_compared_is_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", 1.0), write_run(tmp_path / "b", 1.0)
    assert "two runs" in refused("compare.py", a)
    assert "runs" in refused("compare.py") and "--jsn" in refused("compare.py", a, b, "--jsn", "x")
    assert "finished run" in refused("compare.py", a, tmp_path)
    (b / "embeddings.npz").unlink()
    assert "b/embeddings.npz: no such file" in refused("compare.py", a, b)
    (b / "result.json").write_text("{}")
    assert "b/result.json is not a run's result" in refused("compare.py", a, b)
