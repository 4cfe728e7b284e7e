"""Figures have intervals around them, and several of them live in one result without losing their protocols."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from eval.figures import (
    Direction,
    Figures,
    QueryValues,
    figures_table,
    first_protocol,
    join_figures,
    mean_figures,
    retrieval_figures,
    split_figures,
)
from eval.intervals import Bootstrap
from eval.protocols import Protocol
from eval.retrieval import retrieval_both

COCO = Protocol("coco", "karpathy-test", 5000, 25_010, "5-7")


def text_of(table, width=200):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def directions(fold=None):
    rng = np.random.default_rng(0)
    image = rng.standard_normal((60, 6))
    text, ids = np.repeat(image, 5, 0) + rng.standard_normal((300, 6)), np.arange(60)
    text_ids = np.repeat(ids, 5)
    forward, backward = retrieval_both(image, text, ids, text_ids)
    folds = (None, None) if fold is None else (fold, np.repeat(fold, 5))
    return {
        "image_to_text": Direction(forward, ids, folds[0]),
        "text_to_image": Direction(backward, text_ids, folds[1]),
    }


def test_every_figure_has_an_interval_around_it_and_rsum_is_the_sum():
    found = retrieval_figures(COCO, directions(), Bootstrap(200))
    assert set(found.metrics) == set(found.intervals)
    for name, (low, high) in found.intervals.items():
        assert low <= found.metrics[name] <= high, name
    recalls = [v for k, v in found.metrics.items() if "/R@" in k]
    assert found.metrics["rsum"] == pytest.approx(sum(recalls)) and len(recalls) == 6
    assert "rsum" in text_of(figures_table(found))


def test_a_perfect_score_is_no_certainty_and_its_sum_is_that_of_its_parts():
    image = np.eye(8)
    forward, backward = retrieval_both(image, image, np.arange(8), np.arange(8))
    perfect = {"image_to_text": Direction(forward, np.arange(8)), "text_to_image": Direction(backward, np.arange(8))}
    found = retrieval_figures(COCO, perfect, Bootstrap(50))
    low, high = found.intervals["image_to_text/R@1"]
    assert (low, high) == pytest.approx((67.56, 100), abs=0.01)  # Wilson, 8 of 8
    assert found.intervals["rsum"] == pytest.approx((6 * low, 600))
    assert found.intervals["image_to_text/mean_rank"] == (1, 1)


def test_a_median_rank_is_the_mean_over_folds():
    fold = np.repeat([0, 1], 30)
    found = directions(fold)
    ranks = found["image_to_text"].result.ranks
    expected = (np.median(ranks[:30]) + np.median(ranks[30:])) / 2
    assert retrieval_figures(COCO, found, Bootstrap(9)).metrics["image_to_text/median_rank"] == expected


def test_a_sum_needs_all_of_its_summands():
    values = QueryValues(np.arange(4), {"a": np.array([1.0, 2, 3, 4]), "b": np.ones(4)})
    sums = {"both": ("a", "b"), "more": ("a", "c")}
    found = mean_figures(COCO, [values], sums, Bootstrap(50))
    assert found.metrics == {"a": 2.5, "b": 1.0, "both": 3.5}
    # Both move with the same draws, and b does not move.
    assert found.intervals["both"] == pytest.approx(np.add(found.intervals["a"], 1))


def test_several_evaluations_in_one_result_come_apart_again():
    first = Figures(COCO, {"R@1": 50.0, "codes/image/used": 9.0}, {"R@1": (48.0, 52.0)})
    seen = Figures(Protocol("coco", "seen", 3, 15, "5"), {"R@1": 60.0}, {})
    random = Figures(
        Protocol("coco", "val", 3, 15, "5", task="matching"), {"accuracy": 90.0}, {"accuracy": (80.0, 95.0)}
    )
    evaluations = {"val": first, "seen": seen, "matching/random/cosine": random}
    result = json.loads(json.dumps(join_figures(evaluations)))
    assert result["metrics"]["R@1"] == 50 and result["metrics"]["seen/R@1"] == 60
    assert result["intervals"] == {"R@1": [48, 52], "matching/random/cosine/accuracy": [80, 95]}
    assert list(result["protocol"]) == ["val", "seen", "matching/random/cosine"]
    assert split_figures(result) == evaluations and first_protocol(result) == COCO


def test_a_result_without_a_protocol_is_refused():
    with pytest.raises(ValueError, match="evaluate the run again"):
        split_figures({"metrics": {}, "intervals": {}, "protocol": {}})


def test_a_setting_has_no_interval_in_the_table():
    shown = text_of(figures_table(Figures(COCO, {"R@1": 50.0, "threshold": 0.12345}, {"R@1": (48, 52)})))
    assert "48.00 .. 52.00" in shown and "0.1235" in shown and "—" in shown and "25,010 captions" in shown
