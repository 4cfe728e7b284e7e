"""A study runs again with one seed and few steps, by the script that made it."""

from pathlib import Path

import pytest

from eval.studies import ROOT
from mm.study import run_again


def test_one_seed_and_few_steps_in_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(words: list[str], cwd: Path, check: bool) -> None:
        assert cwd == ROOT and check
        seen.append(words)
        (tmp_path / "experts-30.csv").write_text("study,variant,seed,measure,value\nexperts,sparse,0,RSUM,4\n")

    monkeypatch.setattr("subprocess.run", run)
    assert run_again("experts", 30, tmp_path).of("sparse", "RSUM").tolist() == [4]
    (words,) = seen
    assert words[1:5] == ["scripts/ablate.py", "configs/ablations/experts.yaml", "--seeds", "[0]"]
    assert words[5:] == [
        "--settings",
        "{train.steps: 30}",
        "--runs",
        str(tmp_path / "30"),
        "--table",
        str(tmp_path / "experts-30.csv"),
    ]
