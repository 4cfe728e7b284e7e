"""Runs share a table only under one protocol, and are compared on the same items."""

import io
from dataclasses import asdict, replace

import numpy as np
import pytest
from rich.console import Console

from eval.compare import ComparedRun, Row, compare, comparison_table, results_table
from eval.embeddings import Embeddings
from eval.protocols import Protocol

COCO = Protocol("coco", "karpathy-test", 5000, 25_010, "5-7")
IDS = np.arange(40) * 3


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


def test_one_protocol_is_one_table_with_its_words_and_intervals():
    shown = text_of(results_table([Row("a", COCO, {"R@1": 50.0}, {"R@1": (48, 52)}), Row("b", COCO, {"R@5": 70.0})]))
    assert "25,010 captions" in " ".join(shown.split()) and "50.00 [48.00, 52.00]" in shown and "—" in shown
    seen = [Row("a", replace(COCO, pretraining="image: pairs"), {}), Row("b", COCO, {})]
    assert "a, the trunks have seen: image: pairs b, the trunks" in " ".join(text_of(results_table(seen)).split())
    with pytest.raises(ValueError, match="at least one row"):
        results_table([])


def test_a_narrow_terminal_shows_which_run_is_which():
    rows = [Row(f"runs/coco_{n}", COCO, {"image_to_text/R@1": 50.0}, {"image_to_text/R@1": (48, 52)}) for n in "abc"]
    shown = text_of(results_table(rows), width=80)
    assert all(word in shown for word in ("runs/coco_a", "runs/coco_b", "runs/coco_c", "image_to_text/R@1"))


def run(name, noise, **changes):
    """Captions are their image's vector and noise; the run's own figures are re-ranked."""
    centre, rng = np.random.default_rng(99).standard_normal((40, 8)), np.random.default_rng(0)
    text = np.repeat(centre, 5, 0) + noise * rng.standard_normal((200, 8))
    embeddings = {"image": centre, "text": text, "image_ids": IDS, "caption_image_ids": np.repeat(IDS, 5)}
    result = {"protocol": {"val": asdict(Protocol("toy", "val", 40, 200, "5", rerank_depth=3))}}
    return ComparedRun.of(name, result, Embeddings.of(embeddings | changes))


def test_less_noise_is_better_in_every_recall_and_significantly_in_some():
    runs = [run("a", 1.5), run("b", 0.5)]
    found = compare(runs)
    assert len(found) == 6 and {row["run"] for row in found} == {"b"}
    assert all(row["difference"] >= 0 and row["low"] <= row["difference"] <= row["high"] for row in found)
    assert found[3]["measure"] == "text_to_image/R@1" and found[3]["p"] < 0.05
    shown = text_of(comparison_table(found, "a"))
    assert "Difference to a" in shown and f"{found[3]['difference']:+.2f}" in shown and " *" in shown


def test_a_run_s_row_is_of_its_embeddings_alone():
    row = run("a", 0.5).row()
    assert row.protocol.rerank_depth == 0 and row.protocol.name == "toy/val" and len(row.metrics) == 6
    for name, (low, high) in row.intervals.items():
        assert low <= row.metrics[name] <= high


def test_other_items_and_one_run_alone_are_refused():
    shuffled = {"image_ids": IDS[::-1].copy()}
    with pytest.raises(ValueError, match=r"b was evaluated on other items than the first run \(image_ids differ\)"):
        compare([run("a", 1.0), run("b", 1.0, **shuffled)])
    with pytest.raises(ValueError, match="two runs"):
        compare([run("a", 1.0)])
