"""A study is run once, run by run, and ends in one table."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from jsonargparse import ActionConfigFile, ArgumentParser

from mm.artifacts.run import build_run
from mm.config import AlignConfig

STUDIES = sorted((Path(__file__).parents[2] / "configs" / "ablations").glob("*.yaml"))
STUDY = """
settings: {train.steps: 3}
seeds: [0, 1]
variants:
  plain: {}
  dense: {model.backbone.moe.num_experts: 1, model.modalities: [image, text]}
"""


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be run; the first run of the dense variant breaks."""
    seen: list[list[str]] = []

    def run(words: list[str], stdout, **options: object) -> CompletedProcess:  # type: ignore[no-untyped-def]
        seen.append(words)
        values = dict(zip(words[2::2], words[3::2], strict=True))
        folder = Path(values["--runs"]) / values["--name"]
        folder.mkdir(parents=True, exist_ok=True)
        if values["--name"] == "dense-0" and "--resume" not in values:
            stdout.write("train_align: the disk is full\n")
            (folder / "checkpoints").mkdir()
            torch.save({"state_dict": {}}, folder / "checkpoints" / "last.ckpt")
            return CompletedProcess(words, 2)
        metrics = {"RSUM": 10.0 * int(values["--seed"])}
        result = {"metrics": metrics, "parameters_total": 5, "parameters_active": 3, "seconds": 1.5}
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "metrics.csv").write_text("step,train/total,val/RSUM\n9,4.5,\n19,2.5,\n19,,7.0\n")
        return CompletedProcess(words, 0)

    monkeypatch.setattr("subprocess.run", run)
    return seen


def test_a_study_goes_on_where_it_broke_and_ends_in_one_table(
    commands: list[list[str]], script: Callable[..., None], refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "toy.yaml").write_text(STUDY)
    where = (tmp_path / "toy.yaml", "--runs", tmp_path / "runs")
    assert "dense-0 ended with code 2: train_align: the disk is full" in refused("ablate.py", *where)
    script("ablate.py", *where)
    names = [words[words.index("--name") + 1] for words in commands]
    assert names == ["plain-0", "dense-0", "dense-0", "plain-1", "dense-1"]
    assert "--resume" not in commands[0] and commands[2][-2:] == ["--resume", "true"]
    assert commands[4][2:8] == [
        "--train.steps",
        "3",
        "--model.backbone.moe.num_experts",
        "1",
        "--model.modalities",
        '["image", "text"]',
    ]
    rows = list(csv.DictReader((tmp_path / "runs" / "toy.csv").open()))
    found = {(r["study"], r["variant"], r["seed"]): r["value"] for r in rows if r["measure"] == "RSUM"}
    assert found == {("toy", v, s): f"{10.0 * int(s)}" for v in ("plain", "dense") for s in "01"}
    losses = {r["value"] for r in rows if r["measure"] == "train/total"}
    assert losses == {"2.5"}  # the last that was logged
    script("ablate.py", *where)
    assert len(commands) == 5  # all is there: nothing is run again
    assert "plain-0 was run with other settings" in refused("ablate.py", *where, "--settings", "{train.steps: 4}")


@pytest.mark.parametrize("study", STUDIES, ids=lambda p: p.stem)
def test_every_study_of_the_project_is_of_models_that_can_be_built(
    study: Path, script: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three seeds or more; a name that no setting has, or a value that none takes, would be refused here."""
    parser, seen = ArgumentParser(exit_on_error=False), []
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_class_arguments(AlignConfig, as_group=False)

    def run(words: list[str], **options: object) -> CompletedProcess:  # type: ignore[type-arg]
        given = vars(parser.instantiate(parser.parse_args(words[2:])))
        based = given.pop("config")
        config = AlignConfig(**given)
        if not based:  # a base has pretrained trunks, whose files are not everywhere
            with torch.device("meta"):
                build_run(config, torch.arange(100))
        seen.append(config.name)
        result = {"metrics": {}, "parameters_total": 1, "parameters_active": 1, "seconds": 1}
        folder = Path(config.runs) / config.name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "metrics.csv").write_text("step\n")
        return CompletedProcess(words, 0)

    monkeypatch.setattr("subprocess.run", run)
    script("ablate.py", study, "--runs", tmp_path)
    assert len(set(seen)) == len(seen) and {"-0", "-1", "-2"} <= {name[-2:] for name in seen}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seeds: [0]", "it needs `variants`"),
        ("variants: [a, b]", "variants is no part of a study, or of another kind"),
        ("variants: {a: {}}\nsteps: 3", "steps is no part of a study"),
        ("{", "is no YAML"),
    ],
)
def test_what_is_no_study_is_named(content: str, message: str, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    line = refused("ablate.py", tmp_path / "bad.yaml", "--runs", tmp_path)
    assert "bad.yaml" in line and message in line
