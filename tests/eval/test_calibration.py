"""A threshold and probabilities, where they can be done by hand or are known."""

import numpy as np
import pytest

from eval.calibration import calibrate, calibration_error, resampled_calibration_error


def test_the_threshold_lies_half_way_between_what_it_parts():
    assert calibrate(np.array([3.0, 4.0]), np.array([1.0, 2.0])).threshold == pytest.approx(2.5)
    assert calibrate(np.array([3.0, 3.0, 1.0]), np.array([1.0, 0.0])).threshold == pytest.approx(2.0)
    assert calibrate(np.zeros(3), np.zeros(3)).threshold == 0  # equal scores cannot be parted


def test_platt_recovers_the_logistic_that_made_the_labels():
    rng = np.random.default_rng(0)
    scores = rng.normal(0.2, 0.1, 20000)
    label = rng.random(20000) < 1 / (1 + np.exp(-(30 * scores - 6)))
    found = calibrate(scores[label], scores[~label])
    assert (found.slope, found.offset) == (pytest.approx(30, rel=0.1), pytest.approx(-6, rel=0.1))
    assert calibration_error(found.probability(scores), label.astype(float)) < 0.02


def test_calibration_error_by_hand():
    assert calibration_error(np.array([0.9, 0.9]), np.array([1.0, 0.0])) == pytest.approx(0.4)


def test_drawing_every_image_once_gives_the_error_itself():
    rng, image = np.random.default_rng(0), np.arange(40) // 5
    probability, label = rng.random(80), np.repeat([1.0, 0.0], 40)
    by_image = resampled_calibration_error(probability, label, np.tile(image, 2), np.ones((1, 8)))
    assert by_image == pytest.approx(calibration_error(probability, label))
