"""Where every positive pair stands in its ranking, without ever sorting the score matrix.

A pair (row, column) has a place in two rankings: its column among all columns for that row, and its row among all rows
for that column. Each place is two integers: how many items score strictly higher and how many score exactly the same
(the pair itself included). Every retrieval measure of `eval.retrieval` is a function of these counts, and ties are
resolved there by expectation over a random order, so that a constant model scores chance and not 0 or 100.

Scores are fp32 inner products made in tiles, each tile once for both directions. Tiles are padded to one multiple so
that equal vectors get equal bits wherever they stand in the matrix; the tile grid does not depend on the number of
ranks, so sharded counts are the same to the bit.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from eval.scores import as_vectors, exact_matmul, padded, tile_scores
from kernels.collectives import Group, rank_and_size, sum_over_ranks
from kernels.errors import UserError

TILE_ROWS = 1024
TILE_COLUMNS = 5120
CACHE_BYTES = 640 << 20
CACHED = 2**17
"""Scores that a CPU compares at once: half a MB, and an eighth of it for the marks, stay in a core's own cache."""
COUNTED_IN_BYTES = 255
"""Rows whose marks a byte can add up."""


@dataclass(frozen=True)
class PairCounts:
    """For P pairs and the parts of the gallery they compete in; see `count_pairs`."""

    greater: np.ndarray
    """(P, parts) int64: items of each part that score strictly higher than the pair."""
    tied: np.ndarray
    """(P, parts) int64: items that score the same. The pair itself is one of them in its own part."""


@dataclass(frozen=True)
class Counts:
    """Counts of one list of pairs in both rankings."""

    by_row: PairCounts
    """Among the columns, for the pair's row."""
    by_column: PairCounts | None
    """Among the rows, for the pair's column; None where it was not asked for."""


def count_pairs(
    rows: Tensor | ArrayLike,
    columns: Tensor | ArrayLike,
    pairs: np.ndarray,
    *,
    row_part: np.ndarray | None = None,
    column_part: np.ndarray | None = None,
    by_column: bool = True,
    group: Group = None,
    cache_bytes: int = CACHE_BYTES,
) -> Counts:
    """Count, for every pair, what scores higher and what ties, in the pair's row and in its column.

    Args:
        rows: (N, D) floats.
        columns: (M, D) floats.
        pairs: (P, 2) int64 of (row, column).
        row_part: (N,) small integers that split the rows into parts counted separately (folds); default one part.
        column_part: (M,), the same of the columns (folds, captions outside a protocol).
        by_column: whether the second ranking is counted too.
        group: each rank scores its share of the columns' tiles and the counts are summed over ranks; every rank passes
            the same arrays.
        cache_bytes: tiles are kept up to this size and scored again beyond it.

    Raises:
        ValueError: on shapes that do not fit and on vectors that are not finite.
    """
    a = _Parts.of(as_vectors(rows, "rows"), row_part)
    b = _Parts.of(as_vectors(columns, "columns"), column_part)
    if a.width != b.width:
        raise UserError(f"rows are {a.width} wide and columns {b.width}: both sides must come from one space")
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    device = a.vectors.device
    row = torch.from_numpy(a.place[pairs[:, 0]]).to(device)
    column = torch.from_numpy(b.place[pairs[:, 1]]).to(device)
    tiles = _Tiles(a, b, group, cache_bytes)
    with exact_matmul(device.type):
        thresholds = _scores_of(tiles, row, column)
        sum_over_ranks(thresholds, group)
        row_side = _Side(row, thresholds, parts=len(b.labels), items=len(a.vectors))
        column_side = _Side(column, thresholds, parts=len(a.labels), items=len(b.vectors)) if by_column else None
        for span, scores in tiles:
            _compare(scores, span, row_side, column_side)
    counted_by_row = row_side.counts(group, b.labels)
    counted_by_column = column_side.counts(group, a.labels) if column_side else None
    return Counts(counted_by_row, counted_by_column)


@dataclass(frozen=True)
class _Parts:
    """One side of the score matrix, its vectors in the order of their parts."""

    vectors: Tensor
    """(N, D)."""
    place: np.ndarray
    """(N,): where each vector stands in that order."""
    bounds: np.ndarray
    """(segments + 1,): where each part begins and ends."""
    labels: np.ndarray
    """(segments,): the label of each part."""

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    @classmethod
    def of(cls, vectors: Tensor, part: np.ndarray | None) -> "_Parts":
        """Raises ValueError unless `part` is one label >= 0 for each vector."""
        count = vectors.shape[0]
        positions = np.arange(count)
        if part is None:
            return cls(vectors, positions, bounds=np.array([0, count]), labels=np.array([0]))
        part = np.asarray(part)
        if part.shape != (count,) or part.min() < 0:
            raise ValueError(
                f"a part is one label >= 0 for each of {count} vectors, not an array of shape {part.shape}"
            )
        order = np.argsort(part, kind="stable")
        labels, sizes = np.unique(part, return_counts=True)
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        place = np.empty_like(order)
        place[order] = positions
        if not (order == positions).all():
            vectors = vectors[torch.from_numpy(order)]
        return cls(vectors, place, bounds, labels)

    def cuts(self, size: int) -> list[tuple[slice, int]]:
        """Slices of at most `size` vectors that end where their part ends, each with the number of its part."""
        found = []
        bounds = self.bounds.tolist()
        for segment, begin in enumerate(bounds[:-1]):
            end = bounds[segment + 1]
            for start in range(begin, end, size):
                stop = min(start + size, end)
                found.append((slice(start, stop), segment))
        return found


@dataclass(frozen=True)
class _Span:
    """Where a tile lies in the score matrix."""

    rows: slice
    row_segment: int
    """Number of the part in which the rows are."""
    columns: slice
    column_segment: int
    """Number of the part in which the columns are."""


class _Tiles:
    """The score matrix as tiles cut at part boundaries; a rank owns every world-size-th column of tiles."""

    def __init__(self, a: _Parts, b: _Parts, group: Group, cache_bytes: int) -> None:
        self.a = a.vectors
        self.b = b.vectors
        self.room = cache_bytes
        rank, world = rank_and_size(group)
        row_cuts = a.cuts(TILE_ROWS)
        own_columns = b.cuts(TILE_COLUMNS)[rank::world]
        self.spans: list[_Span] = []
        for columns, column_segment in own_columns:
            for rows, row_segment in row_cuts:
                span = _Span(rows, row_segment, columns, column_segment)
                self.spans.append(span)
        self.kept: dict[int, Tensor] = {}
        self.padded_at = -1
        self.padded_columns = self.b[:0]

    def scores(self, index: int) -> Tensor:
        """(R, C) scores of tile `index`, kept while there is room."""
        if index in self.kept:
            return self.kept[index]
        span = self.spans[index]
        if self.padded_at != span.columns.start:  # one tile of columns serves all rows: pad it once
            self.padded_at = span.columns.start
            self.padded_columns = padded(self.b[span.columns])
        width = span.columns.stop - span.columns.start
        scores = tile_scores(self.a[span.rows], self.padded_columns)
        scores = scores[:, :width]
        size = scores.untyped_storage().nbytes()
        if size <= self.room:
            self.room -= size
            self.kept[index] = scores
        return scores

    def __iter__(self) -> Iterator[tuple[_Span, Tensor]]:
        for index, span in enumerate(self.spans):
            yield span, self.scores(index)
            self.kept.pop(index, None)


class _Side:
    """Counts in one direction: the pairs of each item (a row, or a column) stand in slots 0, 1, 2 ... of that item.

    A slot that at least half of the items fill is a row of a table and compared with the scores as they lie, against
    infinity where an item has no such pair; the pairs of all other slots are one list, for which the rows or columns
    are gathered.
    """

    def __init__(self, item: Tensor, thresholds: Tensor, parts: int, items: int) -> None:
        """Sort the pairs by item and slot.

        Args:
            item: (P,) in 0 .. items-1, the row (or column) of each pair.
            thresholds: (P,) its score.
            parts: of the gallery.
            items: rows (or columns).
        """
        self.lock = Lock()
        by_item = torch.argsort(item, stable=True)
        item = item[by_item]
        every_item = torch.arange(items + 1, device=item.device)
        slot = torch.arange(len(item), device=item.device) - torch.searchsorted(item, every_item)[item]
        filled = torch.bincount(slot)
        dense = int((2 * filled >= items).sum())  # slots fill up in order: these are the first ones
        tabled = slot < dense
        self.table = thresholds.new_full((dense, items), torch.inf)
        self.table_at = slot[tabled] * items + item[tabled]
        self.table.view(-1)[self.table_at] = thresholds[by_item[tabled]]
        self.item = item[~tabled]
        self.begins = torch.searchsorted(self.item, every_item).tolist()
        self.order = torch.cat([by_item[tabled], by_item[~tabled]])
        self.threshold = thresholds[by_item[~tabled]]
        self.in_table = torch.zeros(2, parts, dense, items, dtype=torch.int32, device=item.device)
        self.in_list = torch.zeros(2, parts, len(self.item), dtype=torch.int32, device=item.device)

    def add(self, scores: Tensor, at: slice, part: int, dim: int) -> None:
        """Compare a tile with the thresholds of the items it covers.

        Args:
            scores: (R, C) of the tile.
            at: the items it covers.
            part: of the gallery in which the tile lies.
            dim: 1 where items are rows, 0 where they are columns.
        """
        counted = []
        for thresholds in self.table:
            counted.append(_count(scores, thresholds[at], dim))
        begin, end = self.begins[at.start], self.begins[at.stop]
        gathered = []
        step = max(1, _block_elements(scores) // scores.shape[dim])
        for start in range(begin, end, step):
            stop = min(start + step, end)
            some = scores.index_select(1 - dim, self.item[start:stop] - at.start)
            gathered.append(_count(some, self.threshold[start:stop], dim))
        with self.lock:  # Blocks of the same columns are compared at a time.
            if counted:
                self.in_table[:, part, :, at] += torch.stack(counted, 1)
            if gathered:
                self.in_list[:, part, begin:end] += torch.cat(gathered, 1)

    def counts(self, group: Group, labels: np.ndarray) -> PairCounts:
        """What was counted, in the order of the pairs, summed over the ranks of `group`.

        Args:
            group: of ranks, or None.
            labels: (parts,): column p of the counts is of the part with the label p.
        """
        tabled = self.in_table.flatten(2)[:, :, self.table_at]
        counted = sum_over_ranks(torch.cat([tabled, self.in_list], 2), group)
        greater, at_least = counted.transpose(1, 2).cpu().numpy()
        shape = (len(self.order), int(labels.max()) + 1)
        found = PairCounts(np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64))
        place = (self.order.cpu().numpy()[:, None], labels[None, :])
        found.greater[place] = greater
        found.tied[place] = at_least - greater
        return found


def _compare(scores: Tensor, span: _Span, rows: _Side, columns: _Side | None) -> None:
    """Compare a tile with the thresholds of both directions; a CPU's threads take a block of it each."""

    def compare(start: int) -> None:
        block = scores[start : start + step]
        first = span.rows.start + start
        rows.add(block, slice(first, first + len(block)), span.column_segment, 1)
        if columns is not None:
            columns.add(block, span.columns, span.row_segment, 0)

    step = max(1, _block_elements(scores) // scores.shape[1])
    starts = range(0, len(scores), step)
    threads = min(len(starts), torch.get_num_threads())
    if threads < 2:
        for start in starts:
            compare(start)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(compare, starts))


def _count(scores: Tensor, thresholds: Tensor, dim: int) -> Tensor:
    """How many scores are greater, and how many at least.

    Args:
        scores: (R, C).
        thresholds: (R,) or (C,): of every row where `dim` is 1, of every column where it is 0.
        dim: which is counted over.

    Returns:
        (2, R) or (2, C) int32.
    """
    cut = thresholds.unsqueeze(dim)
    if scores.device.type == "cpu":
        return torch.from_numpy(_count_on_cpu(scores.numpy(), cut.numpy(), dim))
    sums = []
    for compare in (torch.gt, torch.ge):
        # The comparison is written as 0/1 floats: summing bools is a hundred times slower.
        marks = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        compare(scores, cut, out=marks)
        sums.append(marks.sum(dim))
    return torch.stack(sums).int()


def _count_on_cpu(scores: np.ndarray, cut: np.ndarray, dim: int) -> np.ndarray:
    """`_count` by NumPy, whose comparisons and counts of bytes are two to four times as fast as torch's; `cut` is
    (R, 1) or (1, C)."""
    counts = np.zeros((2, cut.size), np.int32)
    for compare, count in zip((np.greater, np.greater_equal), counts, strict=True):
        marks = compare(scores, cut)
        if dim == 1:
            count[:] = [np.count_nonzero(row) for row in marks]
            continue
        for start in range(0, len(marks), COUNTED_IN_BYTES):
            some = marks[start : start + COUNTED_IN_BYTES]
            count += some.view(np.uint8).sum(0, dtype=np.uint8)
    return counts


def _block_elements(scores: Tensor) -> int:
    """Scores compared at once: on a CPU what stays in its cache with the marks, elsewhere a tile in one launch."""
    return CACHED if scores.device.type == "cpu" else TILE_ROWS * TILE_COLUMNS


def _scores_of(tiles: _Tiles, rows: Tensor, columns: Tensor) -> Tensor:
    """The score of every pair, cut out of the very tile it is compared in: a pair always ties with itself.

    Args:
        tiles: of the score matrix; a rank has the scores of its own, and zeros for the others.
        rows: (P,).
        columns: (P,).

    Returns:
        (P,).
    """
    thresholds = torch.zeros(len(rows), device=rows.device)
    order = torch.argsort(rows, stable=True)
    rows = rows[order]
    columns = columns[order]
    for index, span in enumerate(tiles.spans):
        edges = torch.tensor([span.rows.start, span.rows.stop], device=rows.device)
        low, high = torch.searchsorted(rows, edges).tolist()
        column = columns[low:high]
        in_tile = (column >= span.columns.start) & (column < span.columns.stop)
        inside = low + in_tile.nonzero()[:, 0]
        if len(inside):
            scores = tiles.scores(index)
            row_at = rows[inside] - span.rows.start
            column_at = columns[inside] - span.columns.start
            thresholds[order[inside]] = scores[row_at, column_at]
    return thresholds
