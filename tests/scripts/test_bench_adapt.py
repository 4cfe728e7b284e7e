"""The table of adapted runs: a row for each strategy, its seeds averaged."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from eval.protocols import Protocol


@pytest.fixture
def adapted(tmp_path: Path) -> Callable[..., Path]:
    """adapted(name, strategy, after) -> the folder of a run whose domain score went from 100 to `after`."""

    def write(name: str, strategy: str, after: float) -> Path:
        scores = {"before": {"domain": 100.0, "general": 300.0}, "after": {"domain": after, "general": 290.0}}
        result = {
            "protocol": {"val": asdict(Protocol("molecules", "val", 512, 512, "1"))},
            "adaptation": {
                "strategy": strategy,
                "run": "base",
                "targets": ["w_in"] if strategy == "lora" else [],
                "trainable": 12345,
                "peak_memory_gib": 1.5,
                "minutes": 2.0,
                "selected": {"metric": "RSUM"},
                **scores,
            },
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(result))
        return tmp_path / name

    return write


def test_seeds_of_one_strategy_are_one_row(
    script: Callable[..., None], adapted: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs = [adapted("a", "lora", 110.0), adapted("b", "lora", 120.0), adapted("c", "full", 130.0)]
    script("bench_adapt.py", "--runs", json.dumps([str(run) for run in runs]), "--out", tmp_path / "table.json")
    said = capsys.readouterr().out
    assert "115.0 ±" in said and "130.0" in said and "12,345" in said
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert {row["strategy"]: len(row["seeds"]) for row in rows} == {"lora on w_in": 2, "full": 1}


def test_a_run_that_was_not_adapted_is_named(
    refused: Callable[..., str], adapted: Callable[..., Path], tmp_path: Path
) -> None:
    folder = adapted("a", "lora", 110.0)
    result = json.loads((folder / "result.json").read_text())
    del result["adaptation"]
    (folder / "result.json").write_text(json.dumps(result))
    assert f"{folder} is no adapted run" in refused("bench_adapt.py", "--runs", json.dumps([str(folder)]))
    assert f"{tmp_path / 'result.json'}: no such file" in refused(
        "bench_adapt.py", "--runs", json.dumps([str(tmp_path)])
    )
    assert "runs is empty" in refused("bench_adapt.py", "--runs", "[]")
