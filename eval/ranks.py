"""Where every positive pair stands in its ranking, without ever sorting the score matrix.

A pair (row, column) has a place in two rankings: its column among all columns for that row, and its row among all rows
for that column. Each place is two integers: how many items score strictly higher and how many score exactly the same
(the pair itself included). Every retrieval measure of `eval.retrieval` is a function of these counts, and ties are
settled there by expectation over a random order, so that a constant model scores chance and not 0 or 100.

Scores are fp32 inner products made in tiles, each tile once for both directions. Tiles are padded to one multiple so
that equal vectors get equal bits wherever they stand in the matrix; the tile grid does not depend on the number of
ranks, so sharded counts are the same to the bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from kernels.collectives import Group, rank_and_size, sum_over_ranks

TILE_ROWS, TILE_COLUMNS, PAD = 512, 5120, 64
CACHE_BYTES = 640 << 20


@dataclass(frozen=True)
class PairCounts:
    """For P pairs and the parts (segments) of the gallery they compete in; see `count_pairs`.

    `greater` and `tied` are (P, parts) int64: items of each part that score strictly higher than the pair, and equal to
    it. The pair itself is one of the tied in its own part.
    """

    greater: np.ndarray
    tied: np.ndarray


@dataclass(frozen=True)
class Counts:
    """Counts of one list of pairs in both rankings; a direction that was not asked for is None."""

    by_row: PairCounts | None
    by_column: PairCounts | None


def count_pairs(
    rows: Tensor | ArrayLike,
    columns: Tensor | ArrayLike,
    pairs: np.ndarray,
    *,
    row_part: np.ndarray | None = None,
    column_part: np.ndarray | None = None,
    by_row: bool = True,
    by_column: bool = True,
    group: Group = None,
    cache_bytes: int = CACHE_BYTES,
) -> Counts:
    """Count, for every pair, what scores higher and what ties, in the pair's row and in its column.

    rows (N, D), columns (M, D) floats; pairs (P, 2) int64 of (row, column). row_part (N,) and column_part (M,) are
    small integers that split rows and columns into parts counted separately (folds, captions outside a protocol);
    default one part. With `group`, each rank scores its share of the columns' tiles and the counts are summed over
    ranks; every rank passes the same arrays. Tiles are kept up to `cache_bytes` and scored again beyond that.
    Raises ValueError on shapes that do not fit and on embeddings that are not finite.
    """
    a, row_order, row_bounds, row_labels = _by_part(as_vectors(rows, "rows"), row_part)
    b, column_order, column_bounds, column_labels = _by_part(as_vectors(columns, "columns"), column_part)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"rows are {a.shape[1]} wide and columns {b.shape[1]}: both sides must come from one space")
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    placed = torch.from_numpy(np.stack([_inverse(row_order)[pairs[:, 0]], _inverse(column_order)[pairs[:, 1]]]))
    placed = placed.to(a.device)
    tiles = _Tiles(a, b, row_bounds, column_bounds, group, cache_bytes)
    with exact_matmul(a.device.type):
        thresholds = _scores_of(tiles, placed)
        sum_over_ranks(thresholds, group)
        row_side = _Side(placed[0], thresholds, len(column_bounds) - 1, a.shape[0]) if by_row else None
        column_side = _Side(placed[1], thresholds, len(row_bounds) - 1, b.shape[0]) if by_column else None
        for rows_at, columns_at, row_segment, column_segment, scores in tiles:
            if row_side is not None:
                row_side.add(scores, rows_at, column_segment, 1)
            if column_side is not None:
                column_side.add(scores, columns_at, row_segment, 0)
    return Counts(
        row_side.counts(group, column_labels) if row_side else None,
        column_side.counts(group, row_labels) if column_side else None,
    )


def as_vectors(values: Tensor | ArrayLike, name: str) -> Tensor:
    """(N, D) float32 on its device. Raises ValueError when it is not a matrix, is empty, or holds NaN or infinity."""
    vectors = torch.as_tensor(values).detach()
    if vectors.ndim != 2 or not vectors.numel():
        raise ValueError(f"{name} must be a matrix of vectors (N, D) with N and D > 0, not {tuple(vectors.shape)}")
    vectors = vectors.to(torch.float32)
    if not bool(torch.isfinite(vectors.sum(dim=1, dtype=torch.float64)).all()):
        bad = int((~torch.isfinite(vectors).all(dim=1)).nonzero()[0])
        raise ValueError(f"{name} holds NaN or infinity (first in vector {bad}): the model that made it diverged")
    return vectors


@contextmanager
def exact_matmul(device: str) -> Iterator[None]:
    """fp32 products whatever the surrounding precision settings are, and no graph."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def tile_scores(a: Tensor, b: Tensor) -> Tensor:
    """(R, D) x (C, D) -> (R, C) inner products, computed at padded shapes (see the module's first lines)."""
    return (padded(a) @ padded(b).T)[: a.shape[0], : b.shape[0]]


def padded(vectors: Tensor) -> Tensor:
    """(N, D) with zero rows up to a multiple of `PAD`."""
    return F.pad(vectors, (0, 0, 0, -len(vectors) % PAD)) if len(vectors) % PAD else vectors


class _Tiles:
    """The score matrix as tiles cut at part boundaries; a rank owns every world-size-th column of tiles."""

    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        row_bounds: np.ndarray,
        column_bounds: np.ndarray,
        group: Group,
        cache_bytes: int,
    ) -> None:
        rank, world = rank_and_size(group)
        self.a, self.b, self.room = a, b, cache_bytes
        column_cuts = list(_cuts(column_bounds, TILE_COLUMNS))[rank::world]
        self.spans = [(*row, *column) for column in column_cuts for row in _cuts(row_bounds, TILE_ROWS)]
        self.kept: dict[int, Tensor] = {}
        self.columns: tuple[int, Tensor] = (-1, b[:0])

    def scores(self, index: int) -> Tensor:
        if index in self.kept:
            return self.kept[index]
        r0, r1, _, c0, c1, _ = self.spans[index]
        if self.columns[0] != c0:  # one tile of columns serves all rows: pad it once
            self.columns = (c0, padded(self.b[c0:c1]))
        scores = tile_scores(self.a[r0:r1], self.columns[1])[:, : c1 - c0]
        size = scores.untyped_storage().nbytes()
        if size <= self.room:
            self.room -= size
            self.kept[index] = scores
        return scores

    def __iter__(self) -> Iterator[tuple[slice, slice, int, int, Tensor]]:
        for index, (r0, r1, row_segment, c0, c1, column_segment) in enumerate(self.spans):
            yield slice(r0, r1), slice(c0, c1), row_segment, column_segment, self.scores(index)
            self.kept.pop(index, None)


class _Side:
    """Counts in one direction: the pairs of each item (a row, or a column) stand in slots 0, 1, 2 ... of that item.

    A slot that every item fills is compared with whole tiles; the pairs of all other slots are one list, for which the
    rows or columns are gathered.
    """

    def __init__(self, item: Tensor, thresholds: Tensor, parts: int, items: int) -> None:
        self.order = torch.argsort(item, stable=True)
        item = item[self.order]
        starts = torch.searchsorted(item, torch.arange(items + 1, device=item.device))
        slot = torch.arange(len(item), device=item.device) - starts[item]
        self.full = int((torch.bincount(slot) == items).sum())  # slots fill up in order: these are the first ones
        slot = slot.clamp(max=self.full)
        by_slot = torch.argsort(slot, stable=True)
        self.order, self.item, self.threshold = self.order[by_slot], item[by_slot], thresholds[self.order[by_slot]]
        self.slots = torch.searchsorted(slot[by_slot], torch.arange(self.full + 2, device=item.device)).tolist()
        self.greater = torch.zeros(parts, len(item), dtype=torch.int32, device=item.device)
        self.at_least = torch.zeros_like(self.greater)

    def add(self, scores: Tensor, at: slice, part: int, dim: int) -> None:
        """Compare one tile with the thresholds of the items it covers (`dim` 1: items are rows; 0: columns)."""
        edges = torch.tensor([at.start, at.stop], device=self.item.device)
        for slot, (begin, end) in enumerate(zip(self.slots[:-1], self.slots[1:], strict=True)):
            low, high = (begin + torch.searchsorted(self.item[begin:end], edges)).tolist()
            if slot < self.full:
                self._compare(scores, low, high, part, dim)
                continue
            for start in range(low, high, TILE_ROWS):
                stop = min(start + TILE_ROWS, high)
                gathered = scores.index_select(1 - dim, self.item[start:stop] - at.start)
                self._compare(gathered, start, stop, part, dim)

    def _compare(self, block: Tensor, low: int, high: int, part: int, dim: int) -> None:
        """Row (or column) i of the block with the threshold of pair low + i."""
        cut = self.threshold[low:high].unsqueeze(dim)
        # The comparison is written as 0/1 floats: summing floats is over a hundred times faster than summing bools.
        marks = torch.empty(block.shape, dtype=torch.float32, device=block.device)
        self.greater[part, low:high] += torch.gt(block, cut, out=marks).sum(dim).int()
        self.at_least[part, low:high] += torch.ge(block, cut, out=marks).sum(dim).int()

    def counts(self, group: Group, labels: np.ndarray) -> PairCounts:
        sum_over_ranks(self.greater, group)
        sum_over_ranks(self.at_least, group)
        shape = (len(self.order), int(labels.max()) + 1)
        greater, tied = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        order = self.order.cpu().numpy()
        greater[order[:, None], labels[None, :]] = self.greater.T.cpu().numpy()
        tied[order[:, None], labels[None, :]] = (self.at_least - self.greater).T.cpu().numpy()
        return PairCounts(greater, tied)


def _scores_of(tiles: _Tiles, placed: Tensor) -> Tensor:
    """The score of every pair, cut out of the very tile it is compared in: a pair always ties with itself."""
    thresholds = torch.zeros(placed.shape[1], device=placed.device)
    order = torch.argsort(placed[0], stable=True)
    rows, columns = placed[0][order], placed[1][order]
    for index, (r0, r1, _, c0, c1, _) in enumerate(tiles.spans):
        low, high = torch.searchsorted(rows, torch.tensor([r0, r1], device=rows.device)).tolist()
        inside = low + ((columns[low:high] >= c0) & (columns[low:high] < c1)).nonzero()[:, 0]
        if len(inside):
            thresholds[order[inside]] = tiles.scores(index)[rows[inside] - r0, columns[inside] - c0]
    return thresholds


def _by_part(vectors: Tensor, part: np.ndarray | None) -> tuple[Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """Vectors in the order of their parts; that order; where each part begins and ends; the label of each part."""
    count = vectors.shape[0]
    if part is None:
        return vectors, np.arange(count), np.array([0, count]), np.array([0])
    part = np.asarray(part)
    if part.shape != (count,) or part.min() < 0:
        raise ValueError(f"a part is one label >= 0 for each of {count} vectors, not an array of shape {part.shape}")
    order = np.argsort(part, kind="stable")
    labels, sizes = np.unique(part, return_counts=True)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    in_order = bool((order == np.arange(count)).all())
    return (vectors if in_order else vectors[torch.from_numpy(order)]), order, bounds, labels


def _inverse(order: np.ndarray) -> np.ndarray:
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse


def _cuts(bounds: np.ndarray, size: int) -> Iterator[tuple[int, int, int]]:
    for segment, (begin, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        for start in range(begin, end, size):
            yield start, min(start + size, end), segment
