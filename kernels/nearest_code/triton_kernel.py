# mypy: allow-untyped-defs
"""Nearest codebook entry on CUDA: tensor cores screen in half precision, float32 decides what they cannot tell apart.

Vectors and codes become unit vectors in float16, whose products are wrong by a known slack at most; lengths stay
float32. A program of the screening holds a block of vectors and runs over a part of the codes. It keeps the KEPT codes
of the highest upper bounds, and bounds of the others. The decision computes in float32 the scores whose bounds reach
the best score found so far; where the bound of others reaches it too, it compares with all of those.

Scores are those of unit vectors: cosine the cosine, euclidean (z·c - |c|²/2) / |z|.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import ceil_div, launch, power_of_two
from kernels.nearest_code.triton_decision import LOWEST, Candidates, decide

VECTORS = 128
"""Rows of a screening tile."""
CODES = 128
"""Columns of a screening tile."""
WARPS = 8
STAGES = 3
"""Tiles of codes on their way, where one holds the whole width."""
CHUNK = 128
"""Channels that are multiplied at once, at most."""
KEPT = 4
"""Codes that a program of the screening keeps of every vector."""
SLOTS = 8
"""Room for them and for what is known of the others."""
PROGRAMS = 128
"""Programs that fill a large GPU: where the vectors make fewer, the codes are split."""
SPLITS = 8
"""Parts of the codes, at most."""
ELEMENTS = 4096
"""Channels of all rows that a program holds outside of the screening."""


class _Units(NamedTuple):
    """Unit vectors and lengths of vectors, up to a whole tile, and then of codes, up to a whole tile."""

    units: Tensor
    """(N' + S', P) float16, zeros in what is padded; P is a whole number of chunks."""
    lengths: Tensor
    """(N' + S',)."""
    rows: int
    """N'."""
    chunk: int
    """Channels that are multiplied at once."""


def nearest_code(z: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """z (N, C), codebook (S, C) -> (N,) int64, decided in float32 whatever the input."""
    if len(z) == 0:
        return torch.empty(0, dtype=torch.int64, device=z.device)
    z = z.contiguous()
    codebook = codebook.contiguous()
    euclidean = metric == "euclidean"
    units = _units(z, codebook, euclidean)
    return decide(z, codebook, units.lengths, _screen(units, z.shape, len(codebook), euclidean), euclidean)


def _units(z: Tensor, codebook: Tensor, euclidean: bool) -> _Units:
    n, width = z.shape
    size = len(codebook)
    chunk = min(CHUNK, max(64, power_of_two(width)))
    padded = ceil_div(width, chunk) * chunk
    z_rows = ceil_div(n, VECTORS) * VECTORS
    rows = z_rows + ceil_div(size, CODES) * CODES
    units = torch.empty(rows, padded, dtype=torch.float16, device=z.device)
    lengths = torch.empty(rows, device=z.device)
    channels = power_of_two(padded)
    block = max(1, ELEMENTS // channels)
    least = 0.0 if euclidean else 1e-12  # as F.normalize
    grid = rows // block, 1
    sizes = n, z_rows, size, width, padded, least, block, channels
    launch(_unit_kernel, grid, z, codebook, units, lengths, *sizes)
    return _Units(units, lengths, z_rows, chunk)


def _screen(units: _Units, shape: torch.Size, size: int, euclidean: bool) -> Candidates:
    n, width = shape
    device = units.units.device
    blocks = ceil_div(n, VECTORS)
    tiles = ceil_div(size, CODES)
    share = ceil_div(tiles, min(SPLITS, max(1, PROGRAMS // blocks)))
    parts = ceil_div(tiles, share)
    bits = max(1, (share - 1).bit_length())
    bounds = torch.empty(n, parts, SLOTS, device=device)
    codes = torch.empty(n, parts, SLOTS, dtype=torch.int32, device=device)
    padded = units.units.shape[1]
    launch(
        _screen_kernel,
        (blocks, parts),
        units.units,
        units.lengths,
        bounds,
        codes,
        n,
        units.rows,
        size,
        parts,
        share,
        _slack(width) + 2.0 ** (bits - 22),
        2.0 ** (bits - 22) + 2.0**-20,
        padded,
        euclidean,
        size % CODES > 0,
        bits,
        KEPT,
        SLOTS,
        VECTORS,
        CODES,
        units.chunk,
        num_warps=WARPS,
        num_stages=STAGES if padded == units.chunk else 1,
    )
    return Candidates(bounds, codes, KEPT, share, CODES)


def _slack(width: int) -> float:
    """How much the product of two unit vectors of this width in float16 differs from theirs at most: two roundings per
    channel, of 2^-11 of it or 2^-25 where that is more, and those of the float32 sum.
    """
    return 2.0**-10 * 1.001 + 2.0**-24 * width**0.5 + 2.0**-21 * width


@triton.jit
def _unit_kernel(
    z,
    codebook,
    units,
    lengths,
    n,
    z_rows,
    size,
    width,
    padded,
    least,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Blocks of vectors, then blocks of codes; a code shorter than `least` is divided by that."""
    first = tl.program_id(0) * ROWS
    if first < z_rows:
        _unit_rows(z, units, lengths, first, 0, n, width, padded, 0.0, ROWS, CHANNELS)
    else:
        _unit_rows(codebook, units, lengths, first - z_rows, z_rows, size, width, padded, least, ROWS, CHANNELS)


@triton.jit
def _unit_rows(x, units, lengths, first, offset, n, width, padded, least, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    row = first + tl.arange(0, ROWS)
    c = tl.arange(0, CHANNELS)
    spot = x + row.to(tl.int64)[:, None] * width + c[None, :]
    vectors = tl.load(spot, (row < n)[:, None] & (c < width)[None, :], 0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(vectors * vectors, 1)), tl.maximum(least, 1e-18))
    row += offset
    spot = units + row.to(tl.int64)[:, None] * padded + c[None, :]
    tl.store(spot, (vectors / length[:, None]).to(tl.float16), (c < padded)[None, :])
    tl.store(lengths + row, length)


@triton.jit
def _screen_kernel(
    units,
    lengths,
    bounds,
    codes,
    n,
    z_rows,
    size,
    parts,
    share,
    slack,
    margin,
    padded: tl.constexpr,
    EUCLIDEAN: tl.constexpr,
    RAGGED: tl.constexpr,
    BITS: tl.constexpr,
    KEPT: tl.constexpr,
    SLOTS: tl.constexpr,
    VECTORS: tl.constexpr,
    CODES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A block of vectors against `share` tiles of codes. Every column of the tile keeps its two highest bounds; the
    number of the tile stands in their last BITS, so that a maximum carries it along.
    """
    row = tl.program_id(0) * VECTORS + tl.arange(0, VECTORS)
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, tl.cdiv(size, CODES))
    column = tl.arange(0, CODES)
    c = tl.arange(0, CHUNK)
    x = units + row.to(tl.int64)[:, None] * padded + c[None, :]
    xs = tl.load(x)
    factor = -0.5 * (1.0 - margin) / tl.load(lengths + row)
    best = tl.full((VECTORS, CODES), LOWEST, tl.float32)
    second = tl.full((VECTORS, CODES), LOWEST, tl.float32)
    for tile in tl.range(first, last):
        code = tile * CODES + column
        y = units + (z_rows + code).to(tl.int64)[None, :] * padded + c[:, None]
        if EUCLIDEAN:
            length = tl.load(lengths + z_rows + code)  # before the product, which hides its latency
        score = tl.dot(xs, tl.load(y))
        for left in tl.static_range(CHUNK, padded, CHUNK):
            score = tl.dot(tl.load(x + left), tl.load(y + left), score)
        if EUCLIDEAN:
            score = score * length[None, :] + (factor[:, None] * (length * length)[None, :] + (length * slack)[None, :])
        if RAGGED:
            score = tl.where((code < size)[None, :], score, LOWEST)
        score = _with_last_bits(score, tile - first, BITS)
        second = tl.maximum(second, tl.minimum(best, score))
        best = tl.maximum(best, score)
    slack = 0.0 if EUCLIDEAN else slack  # in euclidean bounds it is, times the code's length
    start = (row.to(tl.int64) * parts + tl.program_id(1)) * SLOTS
    _keep(best, second, slack, bounds + start, codes + start, row < n, first, BITS, KEPT, VECTORS, CODES)


@triton.jit
def _with_last_bits(score, number, BITS: tl.constexpr):
    return ((score.to(tl.int32, bitcast=True) & (-1 << BITS)) | number).to(tl.float32, bitcast=True)


@triton.jit
def _keep(
    best,
    second,
    slack,
    bounds,
    codes,
    here,
    first,
    BITS: tl.constexpr,
    KEPT: tl.constexpr,
    VECTORS: tl.constexpr,
    CODES: tl.constexpr,
):
    """The slots of `Candidates`, from the two highest of all columns.

    Infinity in `second` marks a column of which the first has been kept, and whose second stands in `best`. Once that
    is kept too, nothing is known of the column but that it has no higher one.
    """
    column = tl.arange(0, CODES)
    others = tl.full((VECTORS,), LOWEST, tl.float32)
    bound = tl.full((VECTORS,), LOWEST, tl.float32)
    spent = tl.zeros((VECTORS,), tl.int32)
    for turn in tl.static_range(KEPT):
        top, where = tl.max(best, 1, return_indices=True)
        hit = column[None, :] == where[:, None]
        taken = second == float("inf")
        again = tl.max((hit & taken).to(tl.int32), 1) > 0
        others = tl.where(again & (bound > LOWEST), tl.maximum(others, top), others)
        spent = tl.where(again & (bound == LOWEST), where, spent)
        bound = tl.where(again & (bound == LOWEST), top, bound)
        best = tl.where(hit, tl.where(taken, LOWEST, second), best)
        second = tl.where(hit, float("inf"), second)
        tile = first + (top.to(tl.int32, bitcast=True) & ((1 << BITS) - 1))
        tl.store(bounds + turn, top + slack, here)
        tl.store(codes + turn, tile * CODES + where, here)
    tl.store(bounds + KEPT, bound + slack, here)
    tl.store(codes + KEPT, first * CODES + spent, here)
    tl.store(bounds + KEPT + 1, tl.maximum(others, tl.max(best, 1)) + slack, here)
