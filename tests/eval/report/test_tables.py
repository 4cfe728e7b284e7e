"""The report's tables: directions are rows, beside chance and a baseline; utilization is by part."""

import math
from dataclasses import replace
from math import comb

import numpy as np
import pytest

from eval.diagnostics import Diagnostics
from eval.figures import Figures
from eval.protocols import Protocol
from eval.report.tables import Baseline, chance_at, other_table, retrieval_table, utilization_tables

SCENES = Protocol("scenes", "val", 10, 50, "5", rerank_depth=2)
FIGURES = Figures(
    SCENES,
    {
        "image_to_text/R@1": 61.2,
        "image_to_text/R@5": 80.0,
        "image_to_text/R@10": 90.0,
        "image_to_text/median_rank": 1.0,
        "image_to_text/true_recall@1": 9.0,
        "reranked/image_to_text/R@1": 70.0,
        "RSUM": 400.0,
        "codes/image/used": 99.0,
    },
    {"image_to_text/R@1": (55.0, 67.04)},
)


def values(rows):
    return [[cell.value for cell in row] for row in rows]


def test_directions_are_rows_beside_chance_and_the_baseline():
    table = retrieval_table(FIGURES, {}, Baseline("best", {"image_to_text/R@1": 50.0, "RSUM": 410.0}))
    first, again = values(table.rows)
    assert first[:5] == ["image → text", "61.2", "80.0", "90.0", "1"] and first[6] == "50.0 / – / –"
    # Of 50 captions 5 are right: none of 5, of 10 that are drawn is.
    missed = [comb(45, k) / comb(50, k) for k in (1, 5, 10)]
    assert first[5] == " / ".join(f"{100 * (1 - each):.1f}" for each in missed)
    assert table.rows[0][1].small == "55.0–67.0"
    assert again[0] == "image → text, best 2 re-ranked" and again[1] == "70.0"
    assert "RSUM 400.0 (best 410.0)" in table.note
    assert "No baseline" in retrieval_table(FIGURES, {}, None).note
    gain = "reranked/image_to_text/gain@1"
    figures = replace(
        FIGURES,
        metrics=FIGURES.metrics | {gain: 8.8},
        intervals=FIGURES.intervals | {gain: (-1.2, 17.0)},
    )
    assert "Re-ranking adds to R@1: image → text +8.8 [-1.2, +17.0]." in retrieval_table(figures, {}, None).note


@pytest.mark.parametrize(
    "change, direction, first, expected",
    [
        ({}, "text_to_image", None, 10.0),
        ({}, "audio_to_text", None, math.nan),
        ({"gallery": {"audio_to_text": 20}}, "audio_to_text", 25.0, 25.0),
        ({"ground_truth": "eccv"}, "text_to_image", None, math.nan),
        ({"images": 0, "captions": 0}, "image_to_text", None, math.nan),
    ],
)
def test_chance_is_of_a_random_ranking_and_unknown_where_sizes_do_not_tell(change, direction, first, expected):
    assert chance_at(replace(SCENES, **change), direction, 1, first) == pytest.approx(expected, nan_ok=True)


def test_what_is_no_recall_has_a_table_with_the_chance_of_a_choice():
    figures = Figures(replace(SCENES, task="matching"), {"accuracy": 90.0, "threshold": 0.2}, {"accuracy": (88, 92)})
    table = other_table(figures)
    assert values(table.rows) == [["accuracy", "90.00", "50"], ["threshold", "0.20", ""]]
    assert retrieval_table(figures, {}, None) is None and other_table(Figures(SCENES, {"RSUM": 1.0}, {})) is None


def test_utilization_is_by_quantizer_and_layer():
    load = {"image": np.array([[4, 0], [2, 2]]), "text": np.array([[0, 4], [2, 2]])}
    codes, experts = utilization_tables(Diagnostics({"image": np.array([[1, 1, 0, 0]])}, load))
    assert values(codes.rows) == [["image, quantizer 0", "4", "2", "50.0", "2.0", "2.0"]] and codes.note == ""
    names = [row[0] for row in values(experts.rows)]
    assert names[:2] == ["image, layer 0", "image, layer 1"] and names[-1] == "all, layer 1"
    assert experts.note == "Shared routing mass: image & text 0.50"
    (alone,) = utilization_tables(Diagnostics(expert_load={"image": np.ones((1, 2))}))
    assert alone.note == ""
