"""Matching accuracy: the pairs are what they claim, and the numbers are right where they can be done by hand."""

import json

import numpy as np
import pytest

from eval import matching as m
from eval.classification import prompts, zero_shot

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


def test_sugar_crepe_is_the_mean_over_its_seven_files(tmp_path):
    for index, split in enumerate(m.SUGAR_CREPE):
        row = {"filename": "a.jpg", "caption": "right" if index else "wrong", "negative_caption": "edited!"}
        (tmp_path / f"{split}.json").write_text(json.dumps({"0": row}))
    right = lambda names, texts: np.array([float(t == "right") for t in texts])  # noqa: E731
    found = m.sugar_crepe(m.sugar_crepe_items(tmp_path), right)
    assert found["add_att"] == 50 and found["swap_obj"] == 100 and found["mean"] == pytest.approx(650 / 7)
    (tmp_path / "swap_obj.json").unlink()
    with pytest.raises(FileNotFoundError, match="swap_obj"):
        m.sugar_crepe_items(tmp_path)


def test_zero_shot_classification_reads_the_prompts():
    assert prompts(["dog", "cat"], ["a {}."]) == [["a dog."], ["a cat."]]
    classes = np.eye(3)[:, None, :].repeat(2, 1)
    found = zero_shot(np.eye(3)[[0, 1, 1, 2]], np.array([0, 1, 2, 2]), classes, ks=(1, 2))
    assert found.recall(1) == 75
    with pytest.raises(ValueError, match="labels"):
        zero_shot(np.eye(3), np.array([0, 1, 3]), classes)
    with pytest.raises(ValueError, match=r"a thing"):
        prompts(["dog"], ["a thing"])
