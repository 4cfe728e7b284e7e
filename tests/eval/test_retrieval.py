"""Retrieval measures, by hand-checkable cases and against a full sort."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from eval.retrieval import reranked, retrieval, retrieval_both, rsum, top_k


def by_sorting(scores, query_ids, gallery_ids, k):
    """The definition, for scores without ties: any-hit, true recall and best rank from a full sort."""
    order = np.argsort(-scores, axis=1)
    match = query_ids[:, None] == gallery_ids[order]
    return match[:, :k].any(1), match[:, :k].sum(1) / match.sum(1), match.argmax(1) + 1


def unit(rng, count, width):
    vectors = rng.standard_normal((count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_perfect_scores_give_one_hundred():
    result = retrieval(np.eye(7), np.eye(7), np.arange(7), np.arange(7))
    assert result.recall(1) == 100 and result.median_rank == 1 and result.mean_rank == 1


@pytest.mark.parametrize("images,per_image", [(40, 5), (67, 1), (1111, 5)])
def test_constant_scores_give_chance(images, per_image):
    vector = unit(np.random.default_rng(0), 1, 96)
    ids, text_ids = np.arange(images), np.repeat(np.arange(images), per_image)
    to_text, to_image = retrieval_both(np.repeat(vector, images, 0), np.repeat(vector, len(text_ids), 0), ids, text_ids)
    assert_allclose(to_image.recall(1), 100 / images)
    assert_allclose(to_image.recall(10), 1000 / images)
    assert_allclose(to_image.mean_rank, (images + 1) / 2)
    assert_allclose(to_text.recall(1), 100 / images)
    assert_allclose(to_text.true_recall(10), 1000 / len(text_ids))


def test_one_swapped_caption_lowers_recall_by_exactly_one_part_in_n():
    vectors, text_ids = np.eye(10), np.arange(10)
    swapped = vectors.copy()
    swapped[3] = vectors[4]
    result = retrieval(swapped, vectors, text_ids, np.arange(10))
    assert_allclose(result.recall(1), 90)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 4))
def test_agrees_with_a_full_sort_and_ignores_the_order_of_the_gallery(seed, images, per_image):
    rng = np.random.default_rng(seed)
    image, text = unit(rng, images, 24), unit(rng, images * per_image, 24)
    ids, text_ids = rng.permutation(images) * 3, np.repeat(np.arange(images) * 3, per_image)
    to_text, to_image = retrieval_both(image, text, ids, text_ids, ks=(1, 3))
    for k in (1, 3):
        hit, recall, rank = by_sorting(image @ text.T, ids, text_ids, k)
        assert_allclose(to_text.recall(k), 100 * hit.mean())
        assert_allclose(to_text.true_recall(k), 100 * recall.mean())
        assert_allclose(to_text.ranks, rank)
        assert_allclose(to_image.recall(k), 100 * by_sorting(text @ image.T, text_ids, ids, k)[0].mean())
    shuffle = rng.permutation(len(text))
    again = retrieval(image, text[shuffle], ids, text_ids[shuffle], ks=(1, 3))
    assert_allclose(again.ranks, to_text.ranks)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_ties_score_the_mean_over_random_orders(seed):
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 3, 12).astype(np.float32)
    gallery_ids = rng.integers(0, 2, 12)
    gallery_ids[0] = 1
    result = retrieval(np.ones((1, 1), np.float32), levels[:, None], np.array([1]), gallery_ids, ks=(1, 4))
    found = []
    for _ in range(4000):
        order = np.lexsort((rng.random(12), -levels))
        match = gallery_ids[order] == 1
        found.append([match[:1].any(), match[:4].any(), match[:4].sum() / match.sum(), match.argmax() + 1])
    expected = [result.recall(1) / 100, result.recall(4) / 100, result.true_recall(4) / 100, result.ranks[0]]
    assert_allclose(np.mean(found, 0), expected, atol=0.12)


def test_several_tiles_equal_one_sort():
    rng = np.random.default_rng(1)
    image, text = unit(rng, 1100, 16), unit(rng, 5600, 16)
    text_ids = rng.integers(0, 1100, 5600)
    text_ids[:1100] = np.arange(1100)
    result = retrieval(torch.from_numpy(image), torch.from_numpy(text), np.arange(1100), text_ids)
    _, _, rank = by_sorting((image @ text.T), np.arange(1100), text_ids, 1)
    assert (np.abs(result.ranks - rank) > 1).mean() < 0.002  # two roundings of one score may swap neighbours


def test_top_k_is_the_head_of_the_sort():
    rng = np.random.default_rng(2)
    queries, gallery = unit(rng, 9, 8), unit(rng, 5300, 8)
    scores, indices = top_k(queries, gallery, 6)
    truth = queries @ gallery.T
    assert_allclose(scores.numpy(), -np.sort(-truth, 1)[:, :6], rtol=1e-5)
    assert_allclose(np.take_along_axis(truth, indices.numpy(), 1), scores.numpy(), rtol=1e-5)
    with pytest.raises(ValueError, match="5301"):
        top_k(queries, gallery, 5301)


@pytest.mark.parametrize("size", [1e20, 1e-25, 1e-40, 1e200, 1e-300])
def test_vectors_of_any_finite_size_are_ranked_alike(size):
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((20, 8))
    gallery = np.repeat(queries, 2, 0) + rng.standard_normal((40, 8))
    ids = np.arange(20)
    kind = np.float64 if abs(np.log10(size)) > 40 else np.float32
    expected = retrieval(queries, gallery, ids, np.repeat(ids, 2)).ranks
    for a, b in ((size, size), (size, 1.0)):
        found = retrieval((queries * a).astype(kind), (gallery * b).astype(kind), ids, np.repeat(ids, 2))
        assert np.abs(found.ranks - expected).max() <= (1 if size == 1e-40 else 0)


def test_a_match_level_with_the_last_of_the_shortlist_competes_with_those_left_outside():
    """Scores 3, 2, 2, 2, 1; two are re-scored, and of the three that are level one is among them.

    The matches outside are then two that share the places 3 and 4; each alone is expected at 3.5.
    """
    queries, gallery = np.ones((1, 1)), np.array([[3.0], [2.0], [2.0], [2.0], [1.0]])
    shortlist, scores = np.array([[0, 1]]), np.array([[0.0, 5.0]])
    for match, rank in ((0, 2.0), (1, 1.0), (2, 3.5), (3, 3.5), (4, 5.0)):
        ids = np.where(np.arange(5) == match, 7, np.arange(5))
        assert reranked(queries, gallery, np.array([7]), ids, shortlist, scores).ranks.tolist() == [rank]


def test_reranking_reorders_the_shortlist_and_nothing_else():
    rng = np.random.default_rng(3)
    queries, gallery = unit(rng, 30, 8), unit(rng, 50, 8)
    ids, gallery_ids = np.arange(30), np.concatenate([np.arange(30), np.arange(20)])
    first = retrieval(queries, gallery, ids, gallery_ids)
    scores, shortlist = top_k(queries, gallery, 12)
    assert_allclose(reranked(queries, gallery, ids, gallery_ids, shortlist, scores).ranks, first.ranks)
    knowing = (gallery_ids[shortlist.numpy()] == ids[:, None]).astype(float) + rng.random((30, 12)) / 2
    better = reranked(queries, gallery, ids, gallery_ids, shortlist, knowing)
    assert_allclose(better.ranks, np.where(first.ranks <= 12, 1, first.ranks))


def test_ties_at_the_edge_of_a_shortlist_share_the_places_below_it():
    """Scores 3, 2, 2, 2, 1, of which the first two are re-ranked: two of the equal ones share places 3 and 4."""
    gallery = np.array([[3], [2], [2], [2], [1]], np.float32)
    for match, rank in ((0, 2), (1, 1), (2, 3.5), (3, 3.5), (4, 5)):
        ids = np.where(np.arange(5) == match, 7, np.arange(5))
        shortlist, joint = np.array([[0, 1]]), np.array([[0.0, 1.0]])
        found = reranked(np.ones((1, 1), np.float32), gallery, np.array([7]), ids, shortlist, joint, ks=(1, 3))
        assert found.ranks.tolist() == [rank]
        assert found.recall(3) == 100 * {2: 1, 1: 1, 3.5: 0.5, 5: 0}[rank]


def test_rsum_adds_both_directions():
    both = retrieval_both(np.eye(11), np.eye(11), np.arange(11), np.arange(11))
    assert rsum(*both) == 600


def test_errors_name_what_is_wrong():
    eye, ids = np.eye(3), np.arange(3)
    with pytest.raises(ValueError, match="no match"):
        retrieval(eye, eye, ids, ids + 1)
    with pytest.raises(ValueError, match="NaN"):
        retrieval(eye * np.nan, eye, ids, ids)
    with pytest.raises(ValueError, match="query_ids"):
        retrieval(eye, eye, ids[:2], ids)
    with pytest.raises(ValueError, match="one space"):
        retrieval(eye, np.eye(4), ids, np.arange(4))
