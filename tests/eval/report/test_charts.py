"""Plots of an evaluation: whatever is missing, and chance as it can be counted."""

import numpy as np
import pytest

from eval.report.charts import Curve, code_plot, expert_plot, recall_plots, similarity_plot
from eval.retrieval import retrieval

FOUR = retrieval(np.eye(4), np.eye(4), np.arange(4), np.arange(4), ks=(1, 2))


def test_chance_is_that_of_a_random_ranking():
    assert Curve(FOUR, gallery=4, matches=1).chance(1) == pytest.approx(25)
    # Two of four are drawn, two are right: of the six pairs one has no match.
    assert Curve(FOUR, gallery=4, matches=2).chance(2) == pytest.approx(100 * 5 / 6)
    assert Curve(FOUR, gallery=4, matches=1).chance(9) == 100


@pytest.mark.parametrize(
    "drawn",
    [
        lambda: recall_plots([{"image_to_text": Curve(FOUR, 4, 1)}])[0],
        lambda: similarity_plot(np.ones(3), np.ones(0), "a and b"),
        lambda: code_plot({"image": np.array([0, 3, 0, 1])}),
        lambda: code_plot({"image": np.zeros((2, 4), int)}),
        lambda: expert_plot({"image": np.array([0.0, 3.0])}),
        lambda: expert_plot({"image": np.zeros((2, 3))}),
    ],
)
def test_little_or_nothing_is_drawn_all_the_same(drawn):
    assert "nan" not in drawn().lower() and drawn().startswith("<figure>")


def test_experts_that_never_got_a_token_are_counted_in_words():
    assert "load of 3 experts in 2 layers, 1 never used" in expert_plot({"image": np.array([[1, 0, 2], [3, 0, 0]])})
