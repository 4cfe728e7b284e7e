# mypy: allow-untyped-defs
"""Of the codes that a screening has kept, the nearest in float32 (see `kernels.nearest_code.triton_kernel`)."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import ceil_div, launch, power_of_two

ROWS = 16
"""Vectors of a program."""
WARPS = 4
CODES = tl.constexpr(64)
"""Codes that are compared at once, where all are."""
CHUNK = tl.constexpr(64)
"""Channels that are multiplied at once there."""
ELEMENTS = 4096
"""Channels of all its vectors that a program holds."""
LOWEST = tl.constexpr(-3e38)
"""Below every score; finite, so that other bits in place of its last give no NaN."""


class Candidates(NamedTuple):
    """What the screening finds of every vector in every part of the codes: upper bounds of scores, highest first.

    A part is ``share`` tiles of ``columns`` codes. The first ``kept`` slots are codes. The next stands for a column of
    the tile, of all tiles of the part, and is its first code. The last stands for all other codes.
    """

    bounds: Tensor
    """(N, parts, slots)."""
    codes: Tensor
    """(N, parts, slots) int32."""
    kept: int
    share: int
    columns: int


def decide(z: Tensor, codebook: Tensor, lengths: Tensor, found: Candidates, euclidean: bool) -> Tensor:
    """The code of every vector: z (N, C), codebook (S, C), lengths of z (N, ...) -> (N,) int64."""
    n, width = z.shape
    _, parts, slots = found.bounds.shape
    indices = torch.empty(n, dtype=torch.int64, device=z.device)
    channels = max(16, power_of_two(width))
    rows = max(1, min(ROWS, ELEMENTS // channels))
    launch(
        _decide_kernel,
        (ceil_div(n, rows), 1),
        z,
        lengths,
        codebook,
        found.bounds,
        found.codes,
        indices,
        n,
        width,
        len(codebook),
        parts,
        found.share,
        found.columns,
        euclidean,
        found.kept,
        slots,
        power_of_two(parts) * slots,
        rows,
        channels,
        max(1, ELEMENTS // channels),
        num_warps=WARPS,
    )
    return indices


@triton.jit
def _decide_kernel(
    z,
    lengths,
    codebook,
    bounds,
    codes,
    indices,
    n,
    width,
    size,
    parts,
    share,
    columns,
    EUCLIDEAN: tl.constexpr,
    KEPT: tl.constexpr,
    SLOTS: tl.constexpr,
    PLACES: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILES: tl.constexpr,
):
    """The highest of the kept scores, in float32, and of what was not kept but could be higher."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = row < n
    c = tl.arange(0, CHANNELS)
    zs = tl.load(z + row.to(tl.int64)[:, None] * width + c[None, :], here[:, None] & (c < width)[None, :], 0.0)
    zs = zs.to(tl.float32)
    inverse = 1.0 / tl.load(lengths + row, here, 1.0)
    place = tl.arange(0, PLACES)
    start = row.to(tl.int64)[:, None] * (parts * SLOTS) + place[None, :]
    listed = here[:, None] & (place < parts * SLOTS)[None, :]
    bound = tl.load(bounds + start, listed, LOWEST)
    candidates = tl.load(codes + start, listed, 0)
    slot = (place % SLOTS)[None, :]
    others = tl.max(tl.where(slot == KEPT + 1, bound, LOWEST), 1)
    bound = tl.where(slot <= KEPT, bound, LOWEST)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    chosen = tl.zeros((ROWS,), tl.int32)
    top, where = tl.max(bound, 1, return_indices=True)
    open = top > LOWEST
    while tl.max(open.to(tl.int32), 0) > 0:
        hit = place[None, :] == where[:, None]
        code = tl.sum(tl.where(hit, candidates, 0), 1)
        single = where % SLOTS < KEPT
        score = _scores_of(zs, codebook, code, open & single, width, EUCLIDEAN, CHANNELS)
        score, code = _in_columns(
            score, code, open & (single == 0), z, codebook, row, width, size, share, columns, EUCLIDEAN, CHANNELS, TILES
        )
        score *= inverse
        better = open & ((score > best) | ((score == best) & (code < chosen)))  # of equal scores the first code wins
        best = tl.where(better, score, best)
        chosen = tl.where(better, code, chosen)
        bound = tl.where(hit, LOWEST, bound)
        top, where = tl.max(bound, 1, return_indices=True)
        open = (top > LOWEST) & (top >= best)
    open = (others > LOWEST) & (others >= best)
    if tl.max(open.to(tl.int32), 0) > 0:
        of_all = _best_of_all(z, codebook, row, n, width, size, EUCLIDEAN, ROWS)
        chosen = tl.where(open, of_all, chosen)
    tl.store(indices + row, chosen.to(tl.int64), here)


@triton.jit
def _scores_of(zs, codebook, code, open, width, EUCLIDEAN: tl.constexpr, CHANNELS: tl.constexpr):
    """Of every open row with its code; of the others -inf."""
    c = tl.arange(0, CHANNELS)
    y = codebook + code.to(tl.int64)[:, None] * width + c[None, :]
    cs = tl.load(y, open[:, None] & (c < width)[None, :], 0.0).to(tl.float32)
    return tl.where(open, _scores(zs, cs, EUCLIDEAN), float("-inf"))


@triton.jit
def _in_columns(
    score,
    code,
    open,
    z,
    codebook,
    row,
    width,
    size,
    share,
    columns,
    EUCLIDEAN: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILES: tl.constexpr,
):
    """The score and the code that open rows, whose code is a column's first, find in the whole column, one by one."""
    place = tl.arange(0, row.shape[0])
    while tl.max(open.to(tl.int32), 0) > 0:
        one = place == tl.argmax(open.to(tl.int32), 0)
        x = z + tl.sum(tl.where(one, row, 0), 0).to(tl.int64) * width
        first = tl.sum(tl.where(one, code, 0), 0)
        value, found = _best_of_column(x, codebook, first, width, size, share, columns, EUCLIDEAN, CHANNELS, TILES)
        score = tl.where(one, value, score)
        code = tl.where(one, found, code)
        open = open & (one == 0)
    return score, code


@triton.jit
def _best_of_column(
    x,
    codebook,
    first,
    width,
    size,
    share,
    columns,
    EUCLIDEAN: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILES: tl.constexpr,
):
    """The highest score of one vector, times its length, and its code, of every ``columns``-th code from the first."""
    c = tl.arange(0, CHANNELS)
    xs = tl.load(x + c, c < width, 0.0).to(tl.float32)
    best = float("-inf")
    chosen = first
    for start in range(0, share, TILES):
        tile = start + tl.arange(0, TILES)
        code = first + tile * columns
        inside = (tile < share) & (code < size)
        y = codebook + code.to(tl.int64)[:, None] * width + c[None, :]
        cs = tl.load(y, inside[:, None] & (c < width)[None, :], 0.0).to(tl.float32)
        scores = tl.where(inside, _scores(xs[None, :], cs, EUCLIDEAN), float("-inf"))
        top, where = tl.max(scores, 0, return_indices=True)
        chosen = tl.where(top > best, first + (start + where) * columns, chosen)
        best = tl.maximum(best, top)
    return best, chosen


@triton.jit
def _scores(zs, cs, EUCLIDEAN: tl.constexpr):
    """Row by row, times the length of zs."""
    if EUCLIDEAN:
        return tl.sum(cs * (zs - 0.5 * cs), 1)
    return tl.sum(cs * zs, 1) / tl.maximum(tl.sqrt(tl.sum(cs * cs, 1)), 1e-12)


@triton.jit
def _best_of_all(
    z,
    codebook,
    row,
    n,
    width,
    size,
    EUCLIDEAN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The code of the highest score for every row, by the whole product in float32."""
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    chosen = tl.zeros((ROWS,), tl.int32)
    start = row.to(tl.int64)[:, None]
    for left_code in range(0, size, CODES):
        code = left_code + tl.arange(0, CODES)
        score = tl.zeros((ROWS, CODES), tl.float32)
        square = tl.zeros((CODES,), tl.float32)
        for left in range(0, width, CHUNK):
            c = left + tl.arange(0, CHUNK)
            inside = (c < width)[None, :]
            zs = tl.load(z + start * width + c[None, :], (row < n)[:, None] & inside, 0.0).to(tl.float32)
            y = codebook + code.to(tl.int64)[:, None] * width + c[None, :]
            cs = tl.load(y, (code < size)[:, None] & inside, 0.0).to(tl.float32)
            score = tl.dot(zs, tl.trans(cs), score, input_precision="ieee")
            square += tl.sum(cs * cs, 1)
        if EUCLIDEAN:
            score -= 0.5 * square[None, :]
        else:
            score /= tl.maximum(tl.sqrt(square), 1e-12)[None, :]
        score = tl.where((code < size)[None, :], score, float("-inf"))
        top, where = tl.max(score, 1, return_indices=True)
        better = top > best  # strictly: of equal scores the first code wins
        best = tl.where(better, top, best)
        chosen = tl.where(better, left_code + where, chosen)
    return chosen
