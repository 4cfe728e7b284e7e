"""The report's images: data URIs, whatever is missing."""

import numpy as np
import pytest
from PIL import Image

from eval.plots import Curve, code_utilization_curves, expert_heat_map, loss_curves, photo_uri, similarity_histogram
from eval.retrieval import retrieval


def test_chance_is_that_of_a_random_ranking():
    result = retrieval(np.eye(4), np.eye(4), np.arange(4), np.arange(4), ks=(1, 2))
    assert Curve(result, gallery=4, matches=1).chance(1) == pytest.approx(25)
    assert Curve(result, gallery=4, matches=2).chance(2) == pytest.approx(75)
    assert Curve(result, gallery=4, matches=1).chance(9) == 100


def test_photos_are_shrunk():
    large, small = (photo_uri(Image.effect_noise((400, 400), 90), side) for side in (240, 60))
    assert large.startswith("data:image/jpeg;base64,") and len(small) < len(large)


@pytest.mark.parametrize(
    "drawn",
    [
        lambda: similarity_histogram(np.ones(3), np.ones(0)),
        lambda: code_utilization_curves({"image": np.array([0, 3, 0, 1])}),
        lambda: code_utilization_curves({"image": np.zeros((2, 4), int)}),
        lambda: expert_heat_map({"image": np.array([0.0, 3.0])}),
        lambda: loss_curves([{"step": 1.0, "stage": 2.0, "train/a": -1.0}, {"train/a": 3.0}], ["train/a", "train/b"]),
    ],
)
def test_little_or_nothing_is_drawn_all_the_same(drawn):
    assert drawn().startswith("data:image/png;base64,")
