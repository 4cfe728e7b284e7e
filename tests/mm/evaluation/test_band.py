"""A run of the default settings stands beside other seeds and linear heads; any other run does not."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from eval.studies import COLUMNS, Study
from mm.config import AlignConfig, OptimConfig, TrainConfig
from mm.evaluation import band as module
from mm.evaluation.band import Band, stored_band
from mm.evaluation.table import show

ROOT = Path(__file__).parents[3]
RESULT = ROOT / "eval" / "results" / "default-on-scenes-val.json"
DIRECTIONS = ("image_to_text", "text_to_image", "audio_to_text", "text_to_audio", "image_to_audio", "audio_to_image")


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of three seeds, in the place of the stored one."""
    measures = [f"{prefix}{name}/R@1" for prefix in ("", "seen/") for name in DIRECTIONS]
    lines = [",".join(COLUMNS)]
    for seed, value in enumerate((50.0, 60.0, 55.0)):
        for measure in ("RSUM", *measures):
            lines.append(f"baseline,default,{seed},{measure},{value}")
            lines.append(f"baseline,linear,{seed},{measure},{value - 30}")
            lines.append(f"baseline,linear_equal_time,{seed},{measure},{value - 10}")
    path = tmp_path / "baseline.csv"
    path.write_text("\n".join(lines))
    monkeypatch.setattr(module, "STUDY", path)
    return Study.load(path)


def test_only_a_run_of_the_default_settings_has_a_band(stored: Study) -> None:
    elsewhere = AlignConfig(name="mine", runs="elsewhere", seed=3, train=TrainConfig(accelerator="cpu"))
    assert stored_band(asdict(elsewhere)) == Band(stored)
    for other in (AlignConfig(train=TrainConfig(steps=10)), AlignConfig(optim=OptimConfig(learning_rate=2e-3))):
        assert stored_band(asdict(other)) is None


def test_without_a_stored_study_there_is_no_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STUDY", tmp_path / "baseline.csv")
    assert stored_band(asdict(AlignConfig())) is None


@pytest.mark.parametrize(("value", "place"), [(49.0, "below"), (50.0, "within"), (60.0, "within"), (61.0, "above")])
def test_the_verdict_says_where_a_run_lies(stored: Study, value: float, place: str) -> None:
    (said,) = Band(stored).sentences({"RSUM": value})
    assert f"RSUM {value:.0f} is {place} the 50 to 60 that 3 seeds" in said
    assert "linear heads on the same trunks reach 25 in as many steps and 45 in as much time" in said


def test_the_verdict_says_what_composition_costs(stored: Study) -> None:
    metrics = {
        "RSUM": 55.0,
        "image_to_text/R@1": 40.0,
        "seen/image_to_text/R@1": 42.0,
        "audio_to_text/R@1": 30.0,
        "seen/audio_to_text/R@1": 45.0,
    }
    *_, said = Band(stored).sentences(metrics)
    assert "Composition costs 2 to 15 points of R@1, most in audio → text" in said


@pytest.fixture
def result() -> dict[str, Any]:
    """A stored result.json, with the settings of today."""
    found: dict[str, Any] = json.loads(RESULT.read_text())
    return found | {"config": json.loads(json.dumps(asdict(AlignConfig())))}


def test_the_table_shows_band_and_linear_heads(
    stored: Study, result: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    show(result)
    shown = capsys.readouterr().out
    assert shown.count("50.0-60.0") == shown.count("25.0") == 2 * len(DIRECTIONS)
    assert "above chance in all 6 directions" in shown.replace("\n", " ") and "3 seeds" in shown


def test_another_run_has_neither(
    stored: Study, result: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    result["config"]["train"]["steps"] = 10
    show(result)
    shown = capsys.readouterr().out
    assert "linear heads" not in shown and "above chance in all 6 directions" in shown.replace("\n", " ")
