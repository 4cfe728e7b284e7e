"""Retrieval between two sets of vectors: R@k (any hit), true recall, median and mean rank, and re-ranked shortlists.

Equal ids are matches, in any number on both sides: five captions of an image carry the image's id. Similarity is the
inner product, so pass unit vectors for cosine. Scores are streamed in tiles (`eval.ranks`); ties are resolved by
expectation over a random order (`eval.measures`), so constant vectors score chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from eval.measures import Placed, best_rank, hit_at, true_recall_at
from eval.ranks import TILE_COLUMNS, TILE_ROWS, count_pairs
from eval.scores import as_vectors, exact_matmul, tile_scores
from kernels.collectives import Group
from kernels.errors import UserError

RECALL_AT = (1, 5, 10)
Vectors = Tensor | ArrayLike
Ids = Tensor | ArrayLike


@dataclass(frozen=True)
class RetrievalResult:
    """One direction of retrieval, kept per query so that intervals and paired tests need no second pass."""

    ks: tuple[int, ...]
    """The depths of the recalls."""
    ranks: np.ndarray
    """(Q,) expected rank of the best match, from 1."""
    hits: np.ndarray
    """(Q, len(ks)) probability of a match in the top k: 0 or 1 unless scores tie."""
    true_recalls: np.ndarray
    """(Q, len(ks)) share of the matches in the top k."""
    query_ids: np.ndarray
    """(Q,)."""

    def recall(self, k: int) -> float:
        """Any-hit R@k in percent."""
        hits = self.hits[:, self.ks.index(k)]
        return float(100 * hits.mean())

    def true_recall(self, k: int) -> float:
        """Mean share of the matches found in the top k, in percent."""
        shares = self.true_recalls[:, self.ks.index(k)]
        return float(100 * shares.mean())

    @property
    def median_rank(self) -> float:
        return float(np.median(self.ranks))

    @property
    def mean_rank(self) -> float:
        return float(self.ranks.mean())

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Flat names to numbers: `<prefix>R@k` and `<prefix>true_recall@k` in percent, and both ranks."""
        found = {f"{prefix}R@{k}": self.recall(k) for k in self.ks}
        for k in self.ks:
            found[f"{prefix}true_recall@{k}"] = self.true_recall(k)
        found[f"{prefix}median_rank"] = self.median_rank
        found[f"{prefix}mean_rank"] = self.mean_rank
        return found


def retrieval(
    queries: Vectors,
    gallery: Vectors,
    query_ids: Ids,
    gallery_ids: Ids,
    ks: Sequence[int] = RECALL_AT,
    *,
    group: Group = None,
) -> RetrievalResult:
    """Rank the gallery for every query.

    Args:
        queries: (Q, D).
        gallery: (G, D).
        query_ids: (Q,) integers.
        gallery_ids: (G,) integers.
        ks: depths of the recalls.
        group: every rank passes the same arrays and scores its share of the gallery; the result is the same to the bit.

    Raises:
        ValueError: on ids that do not fit, vectors that are not finite, and a query without a match.
    """
    query_ids = ids_of(query_ids, queries, "query_ids")
    gallery_ids = ids_of(gallery_ids, gallery, "gallery_ids")
    pairs = matching_pairs(query_ids, gallery_ids)
    counts = count_pairs(queries, gallery, pairs, by_column=False, group=group).by_row
    return result_of(pairs[:, 0], counts.greater.sum(1), counts.tied.sum(1), query_ids, ks)


def retrieval_both(
    image: Vectors,
    text: Vectors,
    image_ids: Ids,
    text_ids: Ids,
    ks: Sequence[int] = RECALL_AT,
    *,
    group: Group = None,
) -> tuple[RetrievalResult, RetrievalResult]:
    """`retrieval` in both directions from scores made once; any two modalities.

    Args:
        image: (N, D).
        text: (M, D).
        image_ids: (N,) integers.
        text_ids: (M,) integers: the image of each text.
        ks: depths of the recalls.
        group: as `retrieval`'s.

    Returns:
        (image to text, text to image).
    """
    image_ids = ids_of(image_ids, image, "image_ids")
    text_ids = ids_of(text_ids, text, "text_ids")
    pairs = matching_pairs(image_ids, text_ids)
    counts = count_pairs(image, text, pairs, group=group)
    row, column = counts.by_row, counts.by_column
    assert column is not None
    to_text = result_of(pairs[:, 0], row.greater.sum(1), row.tied.sum(1), image_ids, ks)
    to_image = result_of(pairs[:, 1], column.greater.sum(1), column.tied.sum(1), text_ids, ks)
    return to_text, to_image


def rsum(*directions: RetrievalResult) -> float:
    """RSUM: the sum of R@1, R@5 and R@10 over the given directions, in percent points (at most 300 per direction)."""
    return float(sum(result.recall(k) for result in directions for k in RECALL_AT))


def top_k(queries: Vectors, gallery: Vectors, k: int) -> tuple[Tensor, Tensor]:
    """The k best of the gallery for every query.

    Which of several equal scores at the border is kept is not defined.

    Returns:
        scores (Q, k) float32, descending, and their positions in the gallery (Q, k) int64.

    Raises:
        ValueError: when k exceeds the gallery.
    """
    a = as_vectors(queries, "queries")
    b = as_vectors(gallery, "gallery")
    if not 1 <= k <= len(b):
        raise UserError(f"the {k} best of a gallery of {len(b)} were asked for; choose 1 <= k <= {len(b)}")
    scores, positions = [], []
    with exact_matmul(a.device.type):
        for rows in a.split(TILE_ROWS):
            best, where = _best_of(rows, b, k)
            scores.append(best)
            positions.append(where)
    return torch.cat(scores), torch.cat(positions)


def _best_of(rows: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`top_k` of one tile of queries: the best so far are kept while the gallery passes by in tiles."""
    best = torch.empty(len(rows), 0, device=rows.device)
    where = torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
    for start in range(0, len(gallery), TILE_COLUMNS):
        tile = tile_scores(rows, gallery[start : start + TILE_COLUMNS])
        value, index = tile.topk(min(k, tile.shape[1]), dim=1)
        joined = torch.cat([best, value], 1)
        joined_at = torch.cat([where, index + start], 1)
        best, kept = joined.topk(min(k, joined.shape[1]), dim=1)
        where = joined_at.gather(1, kept)
    return best, where


def reranked(
    queries: Vectors,
    gallery: Vectors,
    query_ids: Ids,
    gallery_ids: Ids,
    shortlist: Ids,
    joint_scores: Vectors,
    ks: Sequence[int] = RECALL_AT,
) -> RetrievalResult:
    """Retrieval after a joint head has re-scored each query's shortlist.

    Everything outside the shortlist keeps its first-stage order below it. State k as the protocol's rerank depth.

    Args:
        queries: (Q, D).
        gallery: (G, D).
        query_ids: (Q,) integers.
        gallery_ids: (G,) integers.
        shortlist: (Q, k) int64 positions in the gallery, as `top_k` returns for the same vectors.
        joint_scores: (Q, k), which re-order them.
        ks: depths of the recalls.

    Raises:
        ValueError: on shapes, repeated positions, positions outside the gallery, scores that are not finite.
    """
    query_ids = ids_of(query_ids, queries, "query_ids")
    gallery_ids = ids_of(gallery_ids, gallery, "gallery_ids")
    chosen = np.asarray(torch.as_tensor(shortlist).cpu())
    joint = np.asarray(torch.as_tensor(joint_scores).detach().cpu().float())
    _check_shortlist(chosen, joint, len(query_ids), len(gallery_ids))
    pairs = matching_pairs(query_ids, gallery_ids)
    counts = count_pairs(queries, gallery, pairs, by_column=False).by_row
    greater = counts.greater.sum(1)
    tied = counts.tied.sum(1)
    # A match outside has the whole shortlist above it; of the items level with it those in the shortlist are gone.
    outside_greater = np.maximum(greater, chosen.shape[1])
    outside_tied = np.maximum(greater + tied - outside_greater, 1)
    query, match = pairs[:, 0], pairs[:, 1:2]
    place = chosen[query] == match
    inside = place.any(1)
    rivals = joint[query]
    own = joint[query, place.argmax(1)][:, None]
    greater = np.where(inside, (rivals > own).sum(1), outside_greater)
    tied = np.where(inside, (rivals == own).sum(1), outside_tied)
    return result_of(query, greater, tied, query_ids, ks)


def result_of(
    query: np.ndarray, greater: np.ndarray, tied: np.ndarray, query_ids: np.ndarray, ks: Sequence[int] = RECALL_AT
) -> RetrievalResult:
    """A result from counted pairs.

    Args:
        query: (P,) in 0 .. Q-1.
        greater: (P,) items above each pair.
        tied: (P,) items level with it, itself included.
        query_ids: (Q,).
        ks: depths of the recalls.
    """
    placed = Placed.of(query, greater, tied, len(query_ids))
    hits = np.stack([hit_at(placed, k) for k in ks], 1)
    true_recalls = np.stack([true_recall_at(placed, k) for k in ks], 1)
    return RetrievalResult(tuple(ks), best_rank(placed), hits, true_recalls, query_ids)


def matching_pairs(query_ids: np.ndarray, gallery_ids: np.ndarray) -> np.ndarray:
    """(P, 2) int64: every (query position, gallery position) with equal ids, in the order of the queries."""
    order = np.argsort(gallery_ids, kind="stable")
    in_order = gallery_ids[order]
    low = np.searchsorted(in_order, query_ids, "left")
    count = np.searchsorted(in_order, query_ids, "right") - low
    query = np.repeat(np.arange(len(query_ids)), count)
    begin = np.cumsum(count) - count
    within = np.arange(len(query)) - np.repeat(begin, count)
    match = order[np.repeat(low, count) + within]
    return np.stack([query, match], 1)


def ids_of(ids: Ids, vectors: Vectors, name: str) -> np.ndarray:
    """(N,) int64.

    Raises:
        ValueError: unless there is one integer id per vector; `name` says whose ids they are.
    """
    found = np.asarray(torch.as_tensor(ids).cpu())
    count = len(torch.as_tensor(vectors))
    if found.shape != (count,) or not np.issubdtype(found.dtype, np.integer):
        raise UserError(f"{name} must be {count} integers, one for each vector, not {found.dtype} {found.shape}")
    return found.astype(np.int64)


def _check_shortlist(chosen: np.ndarray, joint: np.ndarray, queries: int, gallery: int) -> None:
    if chosen.ndim != 2 or chosen.shape != joint.shape or len(chosen) != queries:
        raise ValueError(f"shortlist and joint scores must be ({queries}, k), not {chosen.shape} and {joint.shape}")
    repeated = np.diff(np.sort(chosen, 1), axis=1) == 0
    if chosen.min() < 0 or chosen.max() >= gallery or repeated.any():
        raise ValueError(f"a shortlist holds different positions in 0 .. {gallery - 1} for each query")
    if not np.isfinite(joint).all():
        raise UserError("joint scores hold NaN or infinity: the joint head diverged")
