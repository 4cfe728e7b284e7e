"""Matching accuracy: the numbers are right where they can be done by hand, and thresholds come from elsewhere."""

import numpy as np
import pytest

from eval import matching as m
from eval.calibration import calibrate
from eval.embeddings import Embeddings, ScoredItems
from eval.ground_truth import GroundTruth, Matches
from eval.intervals import Bootstrap
from eval.pairs import Matchable, random_pairs
from eval.protocols import Stated

PAIRS = random_pairs(Matchable(np.arange(6) * 10, np.repeat(np.arange(6) * 10, 5)))
FEW = Bootstrap(20)


def test_separable_scores_are_all_right_and_constant_scores_are_chance():
    high, low = np.linspace(1, 2, 30), np.linspace(-2, -1, 30)
    found = m.matching(high, low, PAIRS, calibrate(high, low), FEW)
    assert (found.accuracy, found.auc, found.forced_choice) == (100, 100, 100) and -1 < found.threshold < 1
    same = np.zeros(30)
    chance = m.matching(same, same, PAIRS, calibrate(same, same), FEW)
    assert (chance.accuracy, chance.auc, chance.forced_choice) == (50, 50, 50)
    assert chance.calibration_error < 1


def test_the_threshold_is_the_validation_split_s_not_the_test_split_s():
    calibration = calibrate(np.array([3.0, 4.0]), np.array([1.0, 2.0]))
    shifted = m.matching(np.full(30, 1.2), np.full(30, 0.2), PAIRS, calibration, FEW)
    assert shifted.threshold == pytest.approx(2.5) and shifted.accuracy == 50 and shifted.auc == 100


def test_every_measure_lies_in_its_interval_and_more_images_narrow_it():
    def evaluated(images):
        rng, ids = np.random.default_rng(0), np.arange(images)
        pairs = random_pairs(Matchable(ids, np.repeat(ids, 5)))
        high, low = rng.normal(0.5, 1, 5 * images), rng.normal(-0.5, 1, 5 * images)
        calibration = calibrate(*rng.normal([[0.5], [-0.5]], 1, (2, 500)))
        return m.matching(high, low, pairs, calibration, Bootstrap(200))

    few, many = evaluated(20), evaluated(500)
    for name in ("accuracy", "auc", "forced_choice", "calibration_error"):
        low, high = many.intervals[name]
        assert low <= many.metrics()[name] <= high and high - low < np.diff(few.intervals[name])[0], name
    assert "threshold" not in many.intervals
    assert evaluated(20).intervals == few.intervals  # the draws are seeded


def test_drawing_every_image_once_gives_the_auc_itself():
    rng, image = np.random.default_rng(0), np.arange(40) // 5
    high, low = rng.integers(0, 9, 40) + 1.0, rng.integers(0, 9, 40) + 0.0  # with ties
    assert m.resampled_auc(high, low, image, np.ones((1, 8))) == pytest.approx(m.auc(high, low))
    doubled = m.resampled_auc(high, low, image, np.array([[2] + [0] * 7]))
    assert doubled == pytest.approx(m.auc(high[:5], low[:5]))


def items(noise=1.0, images=40, seed=0, name="dev", joint=None, **arrays):
    rng, shared = np.random.default_rng(seed), np.random.default_rng(99)
    centre = shared.standard_normal((images, 8))
    ids = np.arange(images) * 3
    found = {
        "image": centre,
        "text": np.repeat(centre, 5, 0) + noise * rng.standard_normal((images * 5, 8)),
        "image_ids": ids,
        "caption_image_ids": np.repeat(ids, 5),
        "caption_ids": np.arange(images * 5),
    }
    return ScoredItems(Embeddings.of(found | arrays), name, joint or {})


def test_matching_takes_its_threshold_from_the_validation_items():
    found = m.evaluate_matching(
        items(), items(seed=1), Stated("toy", "val"), retriever=items(0.1, seed=2, name="easy"), bootstrap=FEW
    )
    random, hard = found["random/cosine"], found["hard/cosine"]
    assert random.metrics["accuracy"] > hard.metrics["accuracy"] > 50
    assert hard.metrics["threshold"] == random.metrics["threshold"] and hard.protocol.name == "toy/val"
    assert "non-matches (top 20 of easy)" in str(hard.protocol) and "threshold fixed on dev" in str(hard.protocol)


def part_of(whole, rows, name):
    """The images at `rows` of scored items, backwards, with their captions, backwards."""
    e = whole.embeddings
    images = np.arange(len(e.image))[rows][::-1]
    captions = np.flatnonzero(np.isin(e.caption_image_ids, e.image_ids[images]))[::-1]
    arrays = e.arrays()
    for names, kept in ((("image", "image_ids"), images), (("text", "caption_image_ids", "caption_ids"), captions)):
        for each in names:
            arrays[each] = arrays[each][kept]
    return ScoredItems(Embeddings.of(arrays), name)


def test_a_retriever_of_both_splits_fixes_a_threshold_by_hard_negatives_too():
    whole, retriever = items(images=80), items(0.1, images=80, seed=2, name="both")
    test, validation = part_of(whole, slice(40, 80), "b"), part_of(whole, slice(40), "a")
    found = m.evaluate_matching(test, validation, Stated("toy", "b"), retriever=retriever, bootstrap=FEW)
    hard, fitted = found["hard/cosine"], found["hard_fitted/cosine"]
    assert fitted.metrics["threshold"] > hard.metrics["threshold"] == found["random/cosine"].metrics["threshold"]
    assert fitted.metrics["accuracy"] > hard.metrics["accuracy"]
    assert fitted.metrics["forced_choice"] == hard.metrics["forced_choice"]  # the same pairs
    assert "fixed on a by negatives of the same kind" in fitted.protocol.task
    alone = part_of(retriever, slice(40, 80), "both")
    assert m.evaluate_matching(test, validation, Stated("toy", "b"), retriever=alone, bootstrap=FEW) == {
        name: figures for name, figures in found.items() if not name.startswith("hard_fitted")
    }


def knows(e):
    return lambda images, captions: (e.image_ids[images] == e.caption_image_ids[captions]).astype(float)


def test_further_scores_are_evaluated_on_the_same_pairs():
    test, validation = (items(seed=seed, joint={"oracle": knows(items().embeddings)}) for seed in (0, 1))
    found = m.evaluate_matching(test, validation, Stated(), bootstrap=FEW)
    assert set(found) == {"random/cosine", "random/oracle"}
    assert found["random/oracle"].metrics["accuracy"] == 100 > found["random/cosine"].metrics["accuracy"]
    assert "by oracle" in found["random/oracle"].protocol.task


def test_known_matches_are_not_used_as_negatives():
    """Everybody calls every image but the last a match of every caption: the last is the only negative left."""
    everything = {i: list(range(30)) for i in range(0, 15, 3)}
    truth = GroundTruth(np.arange(30), np.repeat(np.arange(6) * 3, 5), {"eccv": Matches(everything, {})})
    seen = []

    def watched(images, captions):
        seen.append(images)
        return images.astype(float)

    own = items(images=6, joint={"watched": watched})
    found = m.evaluate_matching(
        own, items(images=6, joint={"watched": knows(own.embeddings)}), Stated(), ground_truth=truth, bootstrap=FEW
    )
    assert set(seen[1]) == {5} and found["random/watched"].protocol.ground_truth == "original+eccv"
    unnamed = ScoredItems(Embeddings(*(getattr(own.embeddings, name) for name in NAMES)), "unnamed")
    with pytest.raises(ValueError, match="caption_ids"):
        m.evaluate_matching(unnamed, unnamed, Stated(), ground_truth=truth)


NAMES = ("image", "text", "image_ids", "caption_image_ids")


def test_a_retriever_of_other_items_is_refused():
    with pytest.raises(ValueError, match="lack images or captions"):
        m.evaluate_matching(items(images=41), items(), Stated(), retriever=items())
    e = items(images=41).embeddings
    unnamed = ScoredItems(Embeddings(*(getattr(e, name) for name in NAMES)), "unnamed")
    with pytest.raises(ValueError, match="lack images or captions"):
        m.evaluate_matching(items(), items(), Stated(), retriever=unnamed)
