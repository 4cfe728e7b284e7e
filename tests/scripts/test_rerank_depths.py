"""rerank_depths says where its table is; what it measures is tested in tests/mm/evaluation/test_depths.py."""

from collections.abc import Callable
from pathlib import Path

import pytest


def test_it_says_where_the_table_is(
    script: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mm.evaluation.depths.evaluate_depth", lambda folder, config, depth: {"seconds": 0.5 + depth})
    script("rerank_depths.py", "--run", tmp_path, "--depths", "[0, 5]")
    assert f"2 depths: {tmp_path / 'rerank.csv'}" in capsys.readouterr().out
    rows = (tmp_path / "rerank.csv").read_text().splitlines()
    assert rows == ["study,variant,seed,measure,value", "rerank,0,0,seconds,0.5", "rerank,5,0,seconds,5.5"]


def test_a_folder_without_a_run_is_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "depth 0: " in refused("rerank_depths.py", "--run", tmp_path)
