"""Pairs for matching are what they claim: a match, and one non-match that nobody calls a match."""

import numpy as np
import pytest

from eval.pairs import Matchable, hard_pairs, random_pairs

IDS, TEXT_IDS = np.arange(6) * 10, np.repeat(np.arange(6) * 10, 5)
ITEMS = Matchable(IDS, TEXT_IDS)


def test_a_negative_is_never_a_match_of_any_ground_truth():
    known = {(image * 10, caption) for caption in range(30) for image in range(4)}
    pairs = random_pairs(Matchable(IDS, TEXT_IDS, np.arange(30), known))
    assert len(pairs.text) == 30 and set(pairs.negative) <= {4, 5}
    assert (IDS[pairs.image] == TEXT_IDS[pairs.text]).all() and (IDS[pairs.negative] != TEXT_IDS[pairs.text]).all()


def test_hard_negatives_come_from_the_named_retriever_only():
    shortlist = np.tile([0, 1], (30, 1))
    pairs = hard_pairs(ITEMS, shortlist, "MiniLM + DINOv2")
    assert set(pairs.negative) == {0, 1} and pairs.negatives == "top 2 of MiniLM + DINOv2"
    only_itself = hard_pairs(ITEMS, np.zeros((30, 1), int), "x")
    assert 0 not in only_itself.image and len(only_itself.text) == 25
    with pytest.raises(ValueError, match="name"):
        hard_pairs(ITEMS, shortlist, "")
    with pytest.raises(ValueError, match="3 captions, not 30"):
        hard_pairs(ITEMS, shortlist[:3], "x")


def test_the_draws_are_the_seed_s():
    one, same, other = (random_pairs(ITEMS, seed).negative for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any()


def test_a_gallery_of_more_than_the_tries_is_sampled():
    ids = np.arange(200)
    pairs = random_pairs(Matchable(ids, ids))
    assert len(pairs.text) == 200 and (pairs.negative != ids).all() and len(set(pairs.negative)) > 100


def test_known_matches_need_caption_ids_and_somebody_must_be_left():
    with pytest.raises(ValueError, match="caption_ids too"):
        Matchable(IDS, TEXT_IDS, known={(0, 1)})
    with pytest.raises(ValueError, match="no caption has a non-match"):
        random_pairs(Matchable(np.array([7]), np.array([7, 7])))
