"""Exact search: products of all vectors with the queries, block by block, and the best of each block."""

import torch
from torch import Tensor

from kernels.errors import UserError

SCORES = 1 << 24
"""Scores that are held at a time, 64 MiB."""


def nearest(vectors: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the vectors of largest product with each query.

    Args:
        vectors: (N, E) float32.
        queries: (Q, E) float32, on the same device.
        k: how many of each; all N where there are fewer.

    Returns:
        scores (Q, k) float32, falling, and positions (Q, k) int64 in `vectors`; of equal scores the earlier first.

    Raises:
        ValueError: k is not positive, or the widths differ.
    """
    if k < 1:
        raise UserError(f"k={k}: ask for at least one")
    if vectors.shape[1] != queries.shape[1]:
        raise UserError(f"queries of width {queries.shape[1]} among vectors of width {vectors.shape[1]}")
    count = len(queries)
    best = queries.new_empty(count, 0)
    places = torch.empty(count, 0, dtype=torch.int64, device=queries.device)
    rows = max(k, SCORES // max(count, 1))
    for start in range(0, len(vectors), rows):
        block = vectors[start : start + rows]
        # A matrix-vector product reads each number once; the general product is slower for one query.
        scores = (block @ queries[0])[None] if count == 1 else queries @ block.T
        top, position = scores.topk(min(k, len(block)), dim=1)
        best = torch.cat([best, top], 1)
        places = torch.cat([places, position + start], 1)
        best, kept = best.topk(min(k, best.shape[1]), dim=1)
        places = places.gather(1, kept)
    return _ordered(best, places)


def _ordered(scores: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (Q, k) and places (Q, k), by falling score and, where equal, by rising place."""
    by_place = places.argsort(dim=1)
    scores = scores.gather(1, by_place)
    places = places.gather(1, by_place)
    by_score = scores.argsort(dim=1, descending=True, stable=True)
    return scores.gather(1, by_score), places.gather(1, by_score)
