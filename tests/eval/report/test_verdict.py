"""What to think follows from the figures alone."""

from dataclasses import replace

import pytest

from eval.figures import Figures
from eval.protocols import RANDOM_WEIGHTS, Protocol
from eval.report.tables import Baseline
from eval.report.verdict import retrieval_verdict

LARGE = Protocol("scenes", "val", 1000, 5000, "5")


def evaluated(first, tenth, low, protocol=LARGE):
    metrics, intervals = {}, {}
    for direction in ("image_to_text", "text_to_image"):
        metrics |= {f"{direction}/R@1": first, f"{direction}/R@10": tenth}
        intervals |= {f"{direction}/R@1": (low, first + 1), f"{direction}/R@10": (low, tenth + 1)}
    return Figures(protocol, metrics, intervals)


@pytest.mark.parametrize(
    "first, tenth, low, tone, start",
    [
        (60.0, 95.0, 57.0, "good", "Far above chance in both directions"),
        (2.0, 15.0, 1.2, "open", "Above chance in both directions, but weak"),
        (0.1, 1.0, 0.0, "bad", "Not to be told from chance"),
    ],
)
def test_figures_are_judged_against_chance(first, tenth, low, tone, start):
    found = retrieval_verdict(evaluated(first, tenth, low), {}, None, [])
    assert found.tone == tone and found.sentences[0].startswith(start)
    assert (
        f"{first:.1f} % of the images (95 % interval {low:.1f} to {first + 1:.1f}, chance 0.1 %)" in found.sentences[0]
    )


def test_a_direction_at_chance_is_named():
    figures = evaluated(60.0, 95.0, 57.0)
    figures.intervals.update({"text_to_image/R@1": (0.0, 0.2), "text_to_image/R@10": (0.5, 2.0)})
    found = retrieval_verdict(figures, {}, None, [])
    assert found.tone == "open" and found.sentences[0].startswith("Above chance in 1 of 2 directions only")
    assert any(each.startswith("At chance: text → image") for each in found.sentences)


@pytest.mark.parametrize(
    "theirs, word", [(50.0, "Better than"), (60.5, "No clear difference to"), (70.0, "Worse than")]
)
def test_the_baseline_is_judged_by_the_interval(theirs, word):
    baseline = Baseline("stored", {"image_to_text/R@1": theirs})
    sentences = retrieval_verdict(evaluated(60.0, 95.0, 57.0), {}, baseline, []).sentences
    assert any(each.startswith(f"{word} the stored run stored") for each in sentences)


@pytest.mark.parametrize(
    "curve, word", [([10, 20, 40], "still rising"), ([10, 50, 30], "best at step 1"), ([10, 50, 50], "levelled off")]
)
def test_the_end_of_training_is_judged_by_validation(curve, word):
    history = [{"step": float(step), "val/RSUM": float(value)} for step, value in enumerate(curve)]
    assert any(word in each for each in retrieval_verdict(evaluated(60.0, 95.0, 57.0), {}, None, history).sentences)


def test_caveats_are_said():
    protocol = replace(LARGE, images=80, captions=400, trained_on=RANDOM_WEIGHTS, skipped={"truncated": 3})
    said = " ".join(retrieval_verdict(evaluated(60.0, 95.0, 57.0, protocol), {}, None, []).sentences)
    assert "Only 80 images" in said and "weights are random" in said and "3 skipped: 3 × truncated" in said


def test_a_choice_is_said_with_its_chance():
    figures = Figures(
        replace(LARGE, task="matching"), {"auc": 91.0, "accuracy": 80.0}, {"auc": (90, 92), "accuracy": (79, 81)}
    )
    assert (
        "accuracy 80.0 (95 % interval 79.0 to 81.0, chance 50)" in retrieval_verdict(figures, {}, None, []).sentences[0]
    )
    assert retrieval_verdict(Figures(LARGE, {"RSUM": 1.0}, {}), {}, None, []).tone == "open"
