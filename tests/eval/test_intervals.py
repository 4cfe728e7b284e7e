"""Intervals cover what they should, and a paired test sees what an unpaired one cannot."""

import numpy as np
import pytest

from eval.intervals import Bootstrap, mean_intervals, paired_test


@pytest.mark.parametrize(
    ("percent", "images", "expected"),
    [(0, 10, (0, 27.75)), (100, 10, (72.25, 100)), (0, 1000, (0, 0.383)), (25, 50, (14.99, 38.62))],
)
def test_where_all_samples_agree_the_interval_is_wilson_s(percent, images, expected):
    """Wilson (1927): for nothing of N it ends at z² / (N + z²), the 27.75 of every table for 0 of 10."""
    found = mean_intervals({"always": np.full(3 * images, float(percent))}, np.repeat(np.arange(images), 3))
    assert found["always"] == pytest.approx(expected, abs=0.2)


def test_one_of_many_is_the_bootstrap_s_own():
    values = np.zeros(40)
    values[0] = 100
    low, high = mean_intervals({"one": values}, np.arange(40))["one"]
    assert low == 0 and high in (5.0, 7.5)


def test_every_sample_draws_as_many_images_as_there_are():
    draws = Bootstrap(20, seed=3).draws(37)
    assert (draws.sum(1) == 37).all() and draws.shape == (20, 37)
    assert (draws == Bootstrap(20, seed=3).draws(37)).all() and (draws != Bootstrap(20, seed=4).draws(37)).any()


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="one image"):
        Bootstrap().draws(0)
    with pytest.raises(ValueError, match="one bootstrap sample, not 0"):
        Bootstrap(0).draws(3)


def test_ninety_five_percent_intervals_cover_the_truth_about_that_often():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values = {"x": (rng.random(120) < 0.3).astype(float)}
        low, high = mean_intervals(values, np.arange(120), Bootstrap(300, seed=trial))["x"]
        covered += low <= 0.3 <= high
    assert 175 <= covered <= 199


def test_captions_of_one_image_count_as_one_draw():
    rng = np.random.default_rng(1)
    per_image = (rng.random(100) < 0.5).astype(float)
    copied = np.repeat(per_image, 5)
    clustered = mean_intervals({"x": copied}, np.repeat(np.arange(100), 5))["x"]
    assert clustered == pytest.approx(mean_intervals({"x": per_image}, np.arange(100))["x"])


def test_paired_test_finds_a_small_consistent_gain_and_no_gain_in_noise():
    rng = np.random.default_rng(2)
    base = rng.random(400)
    assert paired_test(base, base + 0.01, np.arange(400)).p < 0.001
    noise = paired_test(base, base + rng.standard_normal(400) * 0.1, np.arange(400))
    assert noise.p > 0.01 and noise.low < 0 < noise.high
    same = paired_test(base, base, np.arange(400))
    assert same.p == 1 and same.difference == 0


def test_paired_test_refuses_different_items():
    with pytest.raises(ValueError, match="same items"):
        paired_test(np.zeros(3), np.zeros(4), np.arange(3))
