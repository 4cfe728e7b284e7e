"""continue_pretrain as a user runs it: two sets at once, falling rates, terms, and what is forgotten."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mm.artifacts.run import load_run


@pytest.fixture
def words(run: Path, sets: tuple[Path, Path], tmp_path: Path) -> list[object]:
    (tmp_path / "terms.txt").write_text("circle\nsquare\nbenzene\n")
    return [
        "--run",
        run,
        "--data.root",
        sets[1],
        "--runs",
        tmp_path,
        "--name",
        "more",
        "--train.steps",
        8,
        "--train.batch_size",
        8,
        "--train.precision",
        "fp32",
        "--train.accelerator",
        "cpu",
    ]


def test_both_sets_are_trained_on_and_evaluated(
    script: Callable[..., None], words: list[object], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script(
        "continue_pretrain.py",
        *words,
        "--terms",
        tmp_path / "terms.txt",
        "--train.evaluate_every",
        4,
        "--optim.learning_rate",
        1e-3,
    )
    folder = tmp_path / "more"
    result, said = json.loads((folder / "result.json").read_text()), capsys.readouterr().out
    found = result["continued"]
    assert result["protocol"]["val"]["trained_on"] == "trained on own/train, domain/train"
    assert "domain: 16 of 16 images, 1 a step of all captions each" in said
    assert found["mix"] == {"domain": 0.7, "general": 0.3, "stages": 4, "stage_factor": 0.8}
    assert found["before"].keys() == found["after"].keys() == {"domain", "general"} and "general RSUM: " in said
    assert found["terms"] == {
        "seen": ["circle", "square"],
        "skipped": {"benzene": "the text trunk has not met its tokens"},
    }
    assert len(found["term_biases"]) == 4 and any(any(heads) for heads in found["term_biases"].values())
    row = next(csv.DictReader((folder / "metrics.csv").open()))
    assert all(float(row[f"train/{name}"]) > 0 for name in ("domain", "general", "domain/itm/image_text"))
    assert load_run(folder).model.terms is not None
    before, after = (load_file(f / "model.safetensors") for f in (run, folder))
    assert not torch.equal(before["backbone.blocks.0.moe.w_in"], after["backbone.blocks.0.moe.w_in"])


def test_a_killed_run_goes_on_to_the_same_weights(
    script: Callable[..., None],
    killed_at: Callable[[int, Callable[[], object]], None],
    words: list[object],
    tmp_path: Path,
) -> None:
    words += ["--terms", tmp_path / "terms.txt", "--optim.learning_rate", 1e-3, "--train.checkpoint_every", 3]
    script("continue_pretrain.py", *words)
    (tmp_path / "more").rename(tmp_path / "whole")
    killed_at(7, lambda: script("continue_pretrain.py", *words))
    script("continue_pretrain.py", *words, "--resume", "true")
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "more"))
    assert not [name for name, value in expected.items() if not torch.equal(value, found[name])]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--mix.domain", 0), "mix.domain=0.0: it must be in (0, inf)"),
        (("--mix.stages", 0), "mix.stages=0: it must be a whole number in [1, inf)"),
        (("--terms", "/nowhere/terms.txt"), "/nowhere/terms.txt"),
        (("--data.root", "/nowhere"), "/nowhere does not exist"),
        (("--metric", "BLEU"), "metric='BLEU' is not measured on domain/val"),
        (("--resume", "true"), "more holds no run: leave --resume out"),
    ],
)
def test_a_mistake_is_one_line(refused: Callable[..., str], words: list[object], more: tuple, message: str) -> None:
    assert message in refused("continue_pretrain.py", *words, *more)


def test_terms_none_of_which_is_seen_are_refused(
    refused: Callable[..., str], words: list[object], tmp_path: Path
) -> None:
    (tmp_path / "terms.txt").write_text("benzene\n")
    said = refused("continue_pretrain.py", *words, "--terms", tmp_path / "terms.txt")
    assert "none of 1 terms can be seen ('benzene': the text trunk has not met its tokens)" in said
