"""Retrieval between two sets of vectors: R@k (any hit), true recall, median and mean rank, and re-ranked shortlists.

Equal ids are matches, in any number on both sides: five captions of an image carry the image's id. Similarity is the
inner product, so pass unit vectors for cosine. Scores are streamed in tiles (`eval.ranks`); ties are settled by
expectation over a random order (`eval.measures`), so constant vectors score chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from eval.measures import Placed, best_rank, hit_at, true_recall_at
from eval.ranks import TILE_COLUMNS, TILE_ROWS, as_vectors, count_pairs, exact_matmul, tile_scores

if TYPE_CHECKING:
    import torch.distributed as dist

RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class RetrievalResult:
    """One direction of retrieval, kept per query so that intervals and paired tests need no second pass.

    ranks (Q,) expected rank of the best match, from 1; hits (Q, len(ks)) probability of a match in the top k (0 or 1
    unless scores tie); true_recalls (Q, len(ks)) share of the matches in the top k; query_ids (Q,).
    """

    ks: tuple[int, ...]
    ranks: np.ndarray
    hits: np.ndarray
    true_recalls: np.ndarray
    query_ids: np.ndarray

    def recall(self, k: int) -> float:
        """Any-hit R@k in percent."""
        return float(100 * self.hits[:, self.ks.index(k)].mean())

    def true_recall(self, k: int) -> float:
        """Mean share of the matches found in the top k, in percent."""
        return float(100 * self.true_recalls[:, self.ks.index(k)].mean())

    @property
    def median_rank(self) -> float:
        return float(np.median(self.ranks))

    @property
    def mean_rank(self) -> float:
        return float(self.ranks.mean())

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Flat names to numbers: `<prefix>R@k` and `<prefix>true_recall@k` in percent, and both ranks."""
        found = {f"{prefix}R@{k}": self.recall(k) for k in self.ks}
        found |= {f"{prefix}true_recall@{k}": self.true_recall(k) for k in self.ks}
        return found | {f"{prefix}median_rank": self.median_rank, f"{prefix}mean_rank": self.mean_rank}


def retrieval(
    queries: Tensor | ArrayLike,
    gallery: Tensor | ArrayLike,
    query_ids: Tensor | ArrayLike,
    gallery_ids: Tensor | ArrayLike,
    ks: Sequence[int] = RECALL_AT,
    *,
    group: "dist.ProcessGroup | None" = None,
) -> RetrievalResult:
    """Rank the gallery for every query. queries (Q, D), gallery (G, D), query_ids (Q,), gallery_ids (G,) integers.

    With `group` (torch.distributed) every rank passes the same arrays and scores its share of the gallery; the result
    is the same to the bit. Raises ValueError on ids that do not fit, vectors that are not finite, and a query without a
    match.
    """
    query_ids, gallery_ids = ids_of(query_ids, queries, "query_ids"), ids_of(gallery_ids, gallery, "gallery_ids")
    pairs = matching_pairs(query_ids, gallery_ids)
    counts = count_pairs(queries, gallery, pairs, by_column=False, group=group).by_row
    assert counts is not None
    return result_of(pairs[:, 0], counts.greater.sum(1), counts.tied.sum(1), query_ids, ks)


def retrieval_both(
    image: Tensor | ArrayLike,
    text: Tensor | ArrayLike,
    image_ids: Tensor | ArrayLike,
    text_ids: Tensor | ArrayLike,
    ks: Sequence[int] = RECALL_AT,
    *,
    group: "dist.ProcessGroup | None" = None,
) -> tuple[RetrievalResult, RetrievalResult]:
    """`retrieval` in both directions, (image to text, text to image), from scores made once; any two modalities."""
    image_ids, text_ids = ids_of(image_ids, image, "image_ids"), ids_of(text_ids, text, "text_ids")
    pairs = matching_pairs(image_ids, text_ids)
    counts = count_pairs(image, text, pairs, group=group)
    assert counts.by_row is not None and counts.by_column is not None
    return (
        result_of(pairs[:, 0], counts.by_row.greater.sum(1), counts.by_row.tied.sum(1), image_ids, ks),
        result_of(pairs[:, 1], counts.by_column.greater.sum(1), counts.by_column.tied.sum(1), text_ids, ks),
    )


def rsum(*directions: RetrievalResult) -> float:
    """RSUM: the sum of R@1, R@5 and R@10 over the given directions, in percent points (at most 300 per direction)."""
    return float(sum(result.recall(k) for result in directions for k in RECALL_AT))


def top_k(queries: Tensor | ArrayLike, gallery: Tensor | ArrayLike, k: int) -> tuple[Tensor, Tensor]:
    """The k best of the gallery for every query: scores (Q, k) float32 descending and indices (Q, k) int64.

    Which of several equal scores at the border is kept is not defined. Raises ValueError when k exceeds the gallery.
    """
    a, b = as_vectors(queries, "queries"), as_vectors(gallery, "gallery")
    if not 1 <= k <= len(b):
        raise ValueError(f"the {k} best of a gallery of {len(b)} were asked for; choose 1 <= k <= {len(b)}")
    scores, indices = [], []
    with exact_matmul(a.device.type):
        for rows in a.split(TILE_ROWS):
            best = torch.empty(len(rows), 0, device=a.device)
            where = torch.empty(len(rows), 0, dtype=torch.int64, device=a.device)
            for start in range(0, len(b), TILE_COLUMNS):
                tile = tile_scores(rows, b[start : start + TILE_COLUMNS])
                value, index = tile.topk(min(k, tile.shape[1]), dim=1)
                joined, index = torch.cat([best, value], 1), torch.cat([where, index + start], 1)
                best, kept = joined.topk(min(k, joined.shape[1]), dim=1)
                where = index.gather(1, kept)
            scores.append(best)
            indices.append(where)
    return torch.cat(scores), torch.cat(indices)


def reranked(
    queries: Tensor | ArrayLike,
    gallery: Tensor | ArrayLike,
    query_ids: Tensor | ArrayLike,
    gallery_ids: Tensor | ArrayLike,
    shortlist: Tensor | ArrayLike,
    joint_scores: Tensor | ArrayLike,
    ks: Sequence[int] = RECALL_AT,
) -> RetrievalResult:
    """Retrieval after a joint head has re-scored each query's shortlist.

    shortlist (Q, k) int64 are positions in the gallery, as `top_k` returns for the same vectors; joint_scores (Q, k)
    re-order them. Everything outside keeps its first-stage order below the shortlist. State k as the protocol's rerank
    depth. Raises ValueError on shapes, repeated positions, positions outside the gallery, scores that are not finite.
    """
    query_ids, gallery_ids = ids_of(query_ids, queries, "query_ids"), ids_of(gallery_ids, gallery, "gallery_ids")
    chosen = np.asarray(torch.as_tensor(shortlist).cpu())
    joint = np.asarray(torch.as_tensor(joint_scores).detach().cpu().float())
    _check_shortlist(chosen, joint, len(query_ids), len(gallery_ids))
    pairs = matching_pairs(query_ids, gallery_ids)
    counts = count_pairs(queries, gallery, pairs, by_column=False).by_row
    assert counts is not None
    greater, tied, depth = counts.greater.sum(1), counts.tied.sum(1), chosen.shape[1]
    # Outside: the whole shortlist stands above; of the items level in the first stage those in the shortlist have left.
    outside_greater = np.maximum(greater, depth)
    outside_tied = np.maximum(greater + tied - outside_greater, 1)
    place = chosen[pairs[:, 0]] == pairs[:, 1:2]
    inside = place.any(1)
    own = joint[pairs[:, 0], place.argmax(1)][:, None]
    greater = np.where(inside, (joint[pairs[:, 0]] > own).sum(1), outside_greater)
    tied = np.where(inside, (joint[pairs[:, 0]] == own).sum(1), outside_tied)
    return result_of(pairs[:, 0], greater, tied, query_ids, ks)


def result_of(
    query: np.ndarray, greater: np.ndarray, tied: np.ndarray, query_ids: np.ndarray, ks: Sequence[int] = RECALL_AT
) -> RetrievalResult:
    """A result from counted pairs: query (P,) in 0 .. Q-1, greater and tied (P,), query_ids (Q,)."""
    placed = Placed.of(query, greater, tied, len(query_ids))
    return RetrievalResult(
        tuple(ks),
        best_rank(placed),
        np.stack([hit_at(placed, k) for k in ks], 1),
        np.stack([true_recall_at(placed, k) for k in ks], 1),
        query_ids,
    )


def matching_pairs(query_ids: np.ndarray, gallery_ids: np.ndarray) -> np.ndarray:
    """(P, 2) int64: every (query position, gallery position) with equal ids, in the order of the queries."""
    order = np.argsort(gallery_ids, kind="stable")
    low = np.searchsorted(gallery_ids[order], query_ids, "left")
    count = np.searchsorted(gallery_ids[order], query_ids, "right") - low
    query = np.repeat(np.arange(len(query_ids)), count)
    within = np.arange(len(query)) - np.repeat(np.cumsum(count) - count, count)
    return np.stack([query, order[np.repeat(low, count) + within]], 1)


def ids_of(ids: Tensor | ArrayLike, vectors: Tensor | ArrayLike, name: str) -> np.ndarray:
    """(N,) int64. Raises ValueError unless there is one integer id per vector."""
    found, count = np.asarray(torch.as_tensor(ids).cpu()), len(torch.as_tensor(vectors))
    if found.shape != (count,) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"{name} must be {count} integers, one for each vector, not {found.dtype} {found.shape}")
    return found.astype(np.int64)


def _check_shortlist(chosen: np.ndarray, joint: np.ndarray, queries: int, gallery: int) -> None:
    if chosen.ndim != 2 or chosen.shape != joint.shape or len(chosen) != queries:
        raise ValueError(f"shortlist and joint scores must be ({queries}, k), not {chosen.shape} and {joint.shape}")
    if chosen.min() < 0 or chosen.max() >= gallery or (np.diff(np.sort(chosen, 1), axis=1) == 0).any():
        raise ValueError(f"a shortlist holds different positions in 0 .. {gallery - 1} for each query")
    if not np.isfinite(joint).all():
        raise ValueError("joint scores hold NaN or infinity: the joint head diverged")
