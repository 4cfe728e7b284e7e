"""A number keeps its protocol, and two protocols never share a column."""

import io
from dataclasses import asdict, replace

import numpy as np
import pytest
from rich.console import Console

from eval.protocols import Protocol, Row, figures_table, results_table, retrieval_figures
from eval.retrieval import retrieval_both

COCO = Protocol("coco", "karpathy-test", 5000, 25_010, "5-7")


def text_of(table, width=200):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        {"captions": 25_000},
        {"recall": "true"},
        {"rerank_depth": 20},
        {"folds": 5},
        {"trained_on": "zero-shot"},
        {"dataset": "flickr30k"},
    ],
)
def test_two_protocols_in_one_column_are_refused_by_the_field_in_which_they_differ(change):
    rows = [Row("a", COCO, {"R@1": 50.0}), Row("b", replace(COCO, **change), {"R@1": 51.0})]
    with pytest.raises(ValueError, match=next(iter(change))):
        results_table(rows)


def test_one_protocol_is_one_table_with_its_stamp_and_intervals():
    shown = text_of(results_table([Row("a", COCO, {"R@1": 50.0}, {"R@1": (48, 52)}), Row("b", COCO, {"R@5": 70.0})]))
    assert "25,010 captions" in " ".join(shown.split()) and "50.00 [48.00, 52.00]" in shown and "—" in shown


def test_a_narrow_terminal_shows_which_run_is_which():
    rows = [Row(f"runs/coco_{n}", COCO, {"image_to_text/R@1": 50.0}, {"image_to_text/R@1": (48, 52)}) for n in "abc"]
    shown = text_of(results_table(rows), width=80)
    assert all(word in shown for word in ("runs/coco_a", "runs/coco_b", "runs/coco_c", "image_to_text/R@1"))


def test_a_protocol_survives_json_and_refuses_unknown_fields():
    assert Protocol.of_dict(asdict(COCO)) == COCO
    stamp = asdict(COCO) | {"zero_shot": True, "trained_on": "flickr8k", "captions_per_image": 5.0}
    stamp["skipped"] = {"truncated": 2}
    found = Protocol.of_dict(stamp)
    assert (found.trained_on, found.captions_per_image, found.skipped) == ("zero-shot, trained on flickr8k", "5", 2)
    with pytest.raises(ValueError, match="speed"):
        Protocol.of_dict(asdict(COCO) | {"speed": 3})
    with pytest.raises(ValueError, match="captions"):
        Protocol.of_dict({"dataset": "coco", "split": "val"})


def test_sizes_are_counted_not_claimed():
    protocol = Protocol.of_ids(np.arange(3), np.array([0, 0, 1, 2, 2]), dataset="x", split="y")
    assert (protocol.images, protocol.captions, protocol.captions_per_image) == (3, 5, "1-2")


def test_every_figure_has_an_interval_around_it_and_rsum_is_the_sum():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((60, 6))
    text, ids = np.repeat(image, 5, 0) + rng.standard_normal((300, 6)), np.arange(60)
    text_ids = np.repeat(ids, 5)
    forward, backward = retrieval_both(image, text, ids, text_ids)
    directions = {"image_to_text": (forward, ids), "text_to_image": (backward, text_ids)}
    found = retrieval_figures(COCO, directions, samples=200)
    assert set(found.metrics) == set(found.intervals)
    for name, (low, high) in found.intervals.items():
        assert low <= found.metrics[name] <= high, name
    recalls = [v for k, v in found.metrics.items() if "/R@" in k]
    assert found.metrics["rsum"] == pytest.approx(sum(recalls)) and len(recalls) == 6
    assert "rsum" in text_of(figures_table(found))
