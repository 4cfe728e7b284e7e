"""Matching accuracy: the pairs are what they claim, and the numbers are right where they can be done by hand."""

import numpy as np
import pytest

from eval import matching as m

IDS, TEXT_IDS = np.arange(6) * 10, np.repeat(np.arange(6) * 10, 5)


def test_a_negative_is_never_a_match_of_any_ground_truth():
    known = {(image * 10, caption) for caption in range(30) for image in range(4)}
    pairs = m.random_pairs(IDS, TEXT_IDS, known=known, caption_ids=np.arange(30))
    assert len(pairs.text) == 30 and set(pairs.negative) <= {4, 5}
    assert (IDS[pairs.image] == TEXT_IDS[pairs.text]).all() and (IDS[pairs.negative] != TEXT_IDS[pairs.text]).all()


def test_hard_negatives_come_from_the_named_retriever_only():
    shortlist = np.tile([0, 1], (30, 1))
    pairs = m.hard_pairs(IDS, TEXT_IDS, shortlist, "MiniLM + DINOv2")
    assert set(pairs.negative) == {0, 1} and pairs.negatives == "top 2 of MiniLM + DINOv2"
    only_itself = m.hard_pairs(IDS, TEXT_IDS, np.zeros((30, 1), int), "x")
    assert 0 not in only_itself.image and len(only_itself.text) == 25
    with pytest.raises(ValueError, match="name"):
        m.hard_pairs(IDS, TEXT_IDS, shortlist, "")


def test_separable_scores_are_all_right_and_constant_scores_are_chance():
    pairs = m.random_pairs(IDS, TEXT_IDS)
    high, low = np.linspace(1, 2, 30), np.linspace(-2, -1, 30)
    found = m.matching(high, low, pairs, m.calibrate(high, low), samples=50)
    assert (found.accuracy, found.auc, found.forced_choice) == (100, 100, 100) and -1 < found.threshold < 1
    same = np.zeros(30)
    chance = m.matching(same, same, pairs, m.calibrate(same, same), samples=50)
    assert (chance.accuracy, chance.auc, chance.forced_choice) == (50, 50, 50)
    assert chance.calibration_error < 1


def test_the_threshold_is_the_validation_split_s_not_the_test_split_s():
    calibration = m.calibrate(np.array([3.0, 4.0]), np.array([1.0, 2.0]))
    assert calibration.threshold == pytest.approx(2.5)
    pairs = m.random_pairs(IDS, TEXT_IDS)
    shifted = m.matching(np.full(30, 1.2), np.full(30, 0.2), pairs, calibration, samples=20)
    assert shifted.accuracy == 50 and shifted.auc == 100


def test_platt_recovers_the_logistic_that_made_the_labels():
    rng = np.random.default_rng(0)
    scores = rng.normal(0.2, 0.1, 20000)
    label = rng.random(20000) < 1 / (1 + np.exp(-(30 * scores - 6)))
    found = m.calibrate(scores[label], scores[~label])
    assert (found.slope, found.offset) == (pytest.approx(30, rel=0.1), pytest.approx(-6, rel=0.1))
    assert m.calibration_error(found.probability(scores), label.astype(float)) < 0.02


def test_calibration_error_by_hand():
    assert m.calibration_error(np.array([0.9, 0.9]), np.array([1.0, 0.0])) == pytest.approx(0.4)


def test_every_measure_lies_in_its_interval_and_more_images_narrow_it():
    def judged(images):
        rng, ids = np.random.default_rng(0), np.arange(images)
        pairs = m.random_pairs(ids, np.repeat(ids, 5))
        high, low = rng.normal(0.5, 1, 5 * images), rng.normal(-0.5, 1, 5 * images)
        return m.matching(high, low, pairs, m.calibrate(*rng.normal([[0.5], [-0.5]], 1, (2, 500))), samples=200)

    few, many = judged(20), judged(500)
    for name in ("accuracy", "auc", "forced_choice", "calibration_error"):
        low, high = many.intervals[name]
        assert low <= many.metrics()[name] <= high and high - low < np.diff(few.intervals[name])[0], name
    assert "threshold" not in many.intervals
    assert judged(20).intervals == few.intervals  # the draws are seeded


def test_drawing_every_image_once_gives_the_measures_themselves():
    rng, image = np.random.default_rng(0), np.arange(40) // 5
    high, low = rng.integers(0, 9, 40) + 1.0, rng.integers(0, 9, 40) + 0.0  # with ties
    assert m.resampled_auc(high, low, image, np.ones((1, 8))) == pytest.approx(m.auc(high, low))
    probability, label = rng.random(80), np.repeat([1.0, 0.0], 40)
    by_image = m.resampled_calibration_error(probability, label, np.tile(image, 2), np.ones((1, 8)))
    assert by_image == pytest.approx(m.calibration_error(probability, label))
    doubled = m.resampled_auc(high, low, image, np.array([[2] + [0] * 7]))
    assert doubled == pytest.approx(m.auc(high[:5], low[:5]))
