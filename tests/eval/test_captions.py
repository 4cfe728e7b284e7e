"""Captions are scored as pycocoevalcap scores them, each against the references of its own image."""

import shutil

import numpy as np
import pytest

from eval.captions import CaptionScores, captions_table, score_captions, tokenized
from eval.intervals import Bootstrap

REFERENCES = {
    7: ["A red bus on the road.", "a bus drives"],
    3: ["Two dogs play in the grass."],
    5: ["a man rides a brown horse"],
}


@pytest.fixture
def scorer() -> None:
    """What captions are scored with."""
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
    if shutil.which("java") is None:
        pytest.skip("there is no Java")


@pytest.mark.usefixtures("scorer")
def test_the_right_captions_score_best_and_others_by_how_near_they_are() -> None:
    right = {image: texts[0] for image, texts in REFERENCES.items()}
    scores = score_captions(right, REFERENCES)
    assert set(scores.values) == {"BLEU-4", "METEOR", "ROUGE-L", "CIDEr"}
    assert scores.values["BLEU-4"] == pytest.approx(100) and scores.values["ROUGE-L"] == pytest.approx(100)
    swapped = score_captions({7: right[3], 3: right[7], 5: right[5]}, REFERENCES)
    for name, each in swapped.each.items():
        assert each.shape == (3,) and each[2] == pytest.approx(scores.each[name][2]), name
        assert each[0] < scores.each[name][0] and swapped.values[name] < scores.values[name], name


@pytest.mark.usefixtures("scorer")
@pytest.mark.parametrize("between", ["\r", "\u2028", "\f", "\n", "  "])
def test_a_line_separator_moves_no_caption_to_another_image(between: str) -> None:
    captions = {1: ["a dog" + between + "runs"], 2: ["a red bus", ""], 3: ["Two men!"]}
    assert tokenized(captions) == {1: ["a dog runs"], 2: ["a red bus", ""], 3: ["two men"]}


def test_what_cannot_be_scored_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="image 9 has no reference"):
        score_captions({7: "a bus", 9: "a cat"}, REFERENCES)
    with pytest.raises(ValueError, match=r"1 captions: CIDEr .* needs two"):
        score_captions({7: "a bus"}, REFERENCES)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="scored with Java, and there is no `java` here"):
        tokenized({1: ["a dog"]})


def test_gains_are_paired_by_image() -> None:
    values = np.random.default_rng(0).normal(50, 20, 400)
    better = CaptionScores({"CIDEr": 0.0}, {"CIDEr": values + 1})
    gain, low, high = better.gains(CaptionScores({"CIDEr": 0.0}, {"CIDEr": values}))["CIDEr"]
    assert gain == pytest.approx(1) and low == pytest.approx(1) and high == pytest.approx(1)
    wide = better.intervals(Bootstrap(200))["CIDEr"]
    assert wide[0] < values.mean() + 1 < wide[1] and wide[1] - wide[0] > 2


def test_the_table_has_a_row_for_each_result_and_its_lookup_where_it_was_scored() -> None:
    scores = {"BLEU-4": 10.0, "METEOR": 20.0, "ROUGE-L": 30.0, "CIDEr": 50.0}
    result = {
        "evaluated": "runs/talks",
        "dataset": "photos",
        "split": "val",
        "images": 1000,
        "decoding": {"beams": 3},
        "scores": {"written": scores, "nearest": {name: value / 2 for name, value in scores.items()}},
        "intervals": {"written": {"CIDEr": [45.0, 55.0]}},
        "gains": {"CIDEr": [25.0, 20.0, 30.0]},
        "hardware": "a core",
        "commit": "abc",
    }
    alone = result | {"scores": {"written": scores}, "gains": {}, "decoding": {"beams": 1}}
    _, _, first, second, *rest = captions_table([result, alone]).splitlines()
    cells = ["talks", "photos/val, 1,000 images", "3 beams", "**0.50** (0.45 to 0.55)", "0.25", "0.20 to 0.30"]
    assert first == f"| {' | '.join(cells)} | 10.0, 5.0 | 20.0, 10.0 | 30.0, 15.0 |"
    assert "| greedy | **0.50** (0.45 to 0.55) | – | – | 10.0 | 20.0 | 30.0 |" in second
    assert rest[-1].endswith("Measured on: a core (commit abc).")
