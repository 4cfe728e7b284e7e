"""The report of written captions says whether they beat the baseline, and shows them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.report.exhibits import AttentionMap
from eval.report.written import WrittenCaption, judged, write_captions_report


def result(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "evaluated": "runs/x",
        "dataset": "photos",
        "split": "val",
        "images": 2,
        "references": 10,
        "trained_on": "photos/train",
        "pretraining": "image: from scratch",
        "scores": {"written": {"BLEU-4": 20.0, "CIDEr": 50.0}, "nearest": {"BLEU-4": 10.0, "CIDEr": 40.0}},
        "intervals": {"written": {"CIDEr": [45.0, 55.0]}, "nearest": {"CIDEr": [36.0, 44.0]}},
        "gains": {"CIDEr": [10.0, 6.0, 14.0]},
        "similarity": {"written": 0.5, "nearest": 0.6, "references": 0.55},
        "commit": "abc",
        "hardware": "a machine",
    }
    return found | changes


@pytest.mark.parametrize(
    ("gain", "tone", "said"),
    [
        ([10.0, 6.0, 14.0], "good", "better than"),
        ([-5.0, -9.0, -1.0], "bad", "worse than"),
        ([1.0, -1.0, 3.0], "open", "not to be told"),
    ],
)
def test_the_verdict_rests_on_the_paired_interval(gain: list[float], tone: str, said: str) -> None:
    sentences, found = judged(result(gains={"CIDEr": gain}))
    assert found == tone and said in sentences[0] and "CIDEr 0.50 (95 % interval 0.45 to 0.55)" in sentences[0]


def test_without_a_baseline_nothing_is_beaten(tmp_path: Path) -> None:
    alone = result(scores={"written": {"CIDEr": 50.0}}, intervals={"written": {"CIDEr": [45.0, 55.0]}}, gains={})
    sentences, tone = judged(alone)
    assert tone == "open" and "beside no baseline" in sentences[0]
    text = write_captions_report(tmp_path / "r.html", alone, [], []).read_text()
    assert "nearest" not in text


def test_captions_stand_under_their_images_with_what_people_wrote(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 30), "red")
    shown = [WrittenCaption("best", 7, "a <bus>", "a car", ["a red bus", "it drives"], 123.0, picture)]
    shown.append(WrittenCaption("worst", 8, "", "", ["a dog"], 0.0))
    looks = [AttentionMap(picture, ["a", "bus"], np.eye(2)[:, None].repeat(2, 1))]
    text = write_captions_report(tmp_path / "r.html", result(), shown, looks).read_text()
    for said in ("a &lt;bus&gt;", "Best: CIDEr 1.23", "a red bus · it drives", "Nearest training caption: a car"):
        assert said in text, said
    assert "(nothing)" in text and 'alt="image 7"' in text and "bus: looks most at" in text
    assert "20.0" in text and "45.0-55.0" in text
