"""What a study plans, how a run of it is called, and a study run again from a notebook."""

from pathlib import Path

import pytest
import torch

from eval.studies import ROOT
from mm.study import PlannedRun, check_settings, for_each_modality, read_study, run_again


def test_a_starred_setting_is_one_of_every_modality() -> None:
    found = for_each_modality({"*.width": 8, "data.captions": 2})
    assert found == {"image.width": 8, "audio.width": 8, "text.width": 8, "data.captions": 2}


def test_later_settings_win_and_seeds_come_one_after_the_other(tmp_path: Path) -> None:
    study = tmp_path / "toy.yaml"
    study.write_text(
        "config: base.yaml\nsettings: {loss.vq: 1, loss.filip: 1, seed: 1}\nseeds: [3, 4]\n"
        "variants: {x: , y: {loss.filip: 2, seed: 2}}"
    )
    planned = read_study(study, None, {"seed": 3})
    assert [run.name for run in planned] == ["x-3", "y-3", "x-4", "y-4"]
    assert planned[0] == PlannedRun("x", 3, {"loss.vq": 1, "loss.filip": 1, "seed": 3}, "base.yaml")
    assert planned[1].settings == {"loss.vq": 1, "loss.filip": 2, "seed": 3}
    assert [run.seed for run in read_study(study, [7], None)] == [7, 7]


def test_a_run_is_called_with_its_settings_and_resumed_from_a_whole_checkpoint(tmp_path: Path) -> None:
    run = PlannedRun("x", 3, {"train.steps": 5, "model.modalities": ["image", "text"], "loss.kind": "a"}, "base.yaml")
    settings = ["--train.steps", "5", "--model.modalities", '["image", "text"]', "--loss.kind", "a"]
    where = ["--runs", str(tmp_path), "--name", "x-3", "--seed", "3"]
    assert run.options(tmp_path) == ["--config", "base.yaml", *settings, *where]
    checkpoint = tmp_path / "x-3" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"cut off")
    assert "--resume" not in run.options(tmp_path)
    torch.save({"state_dict": {}}, checkpoint)
    assert run.options(tmp_path)[-2:] == ["--resume", "true"]


def test_a_folder_keeps_the_settings_that_it_was_made_with(tmp_path: Path) -> None:
    check_settings(PlannedRun("x", 0, {"a": 1}, None), tmp_path)
    check_settings(PlannedRun("x", 0, {"a": 1}, None), tmp_path)
    with pytest.raises(ValueError, match="x-0 was run with other settings"):
        check_settings(PlannedRun("x", 0, {"a": 2}, None), tmp_path)


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
