# mypy: allow-untyped-defs
"""Contrastive losses on CUDA: a program holds a block of rows and runs over the columns; logits never leave the chip.

Both directions are the same kernels with the sides exchanged, so there are no atomic additions and results repeat
exactly. The width is walked in chunks; a row block's gradient is accumulated in global memory, where only its own
program touches it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

Ids = Tensor | None
ROWS = 64
"""Rows of a tile."""
COLUMNS = 64
"""Columns of a tile."""
CHUNK = 32
"""Channels of the width that are multiplied at once."""


class _Logits(NamedTuple):
    """What decides the logits of rows x (n, D) against rows y (m, D): scale · x yᵀ + bias, -inf where a pair is
    skipped; ``first`` is the column of row 0's positive.
    """

    x: Tensor
    y: Tensor
    scale: Tensor
    bias: Tensor
    x_ids: Ids
    y_ids: Ids
    first: int
    sigmoid: bool

    def transposed(self) -> "_Logits":
        return self._replace(x=self.y, y=self.x, x_ids=self.y_ids, y_ids=self.x_ids, first=-self.first)

    def ids(self) -> tuple[Tensor, Tensor]:
        """x in place of ids where there are none: a kernel takes a pointer, which it then does not read."""
        if self.x_ids is None or self.y_ids is None:
            return self.x, self.x
        return self.x_ids, self.y_ids


def nce_forward(a: Tensor, b: Tensor, scale: Tensor, row_ids: Ids, ids: Ids, first: int) -> tuple[Tensor, Tensor]:
    """As `kernels.info_nce.tiled.nce_forward`."""
    logits = _Logits(a, b, scale, scale, row_ids, ids, first, sigmoid=False)
    return _reduce(logits), _reduce(logits.transposed())


def nce_backward(
    a: Tensor, b: Tensor, scale: Tensor, rows: Tensor, columns: Tensor, row_ids: Ids, ids: Ids, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `kernels.info_nce.tiled.nce_backward`."""
    logits = _Logits(a, b, scale, scale, row_ids, ids, first, sigmoid=False)
    d_a, _ = _gradient(logits, rows, columns)
    d_b, _ = _gradient(logits.transposed(), columns, rows)
    d_scale = (d_a * a).sum()
    return d_a.mul_(scale), d_b.mul_(scale), d_scale


def sigmoid_forward(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, row_ids: Ids, ids: Ids, first: int) -> Tensor:
    """As `kernels.info_nce.tiled.sigmoid_forward`."""
    return _reduce(_Logits(a, b, scale, bias, row_ids, ids, first, sigmoid=True)).sum()


def sigmoid_backward(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, row_ids: Ids, ids: Ids, first: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `kernels.info_nce.tiled.sigmoid_backward`."""
    logits = _Logits(a, b, scale, bias, row_ids, ids, first, sigmoid=True)
    d_a, shares = _gradient(logits, scale, scale)
    d_b, _ = _gradient(logits.transposed(), scale, scale)
    d_scale = (d_a * a).sum()
    return d_a.mul_(scale), d_b.mul_(scale), d_scale, shares.sum()


def _reduce(logits: _Logits) -> Tensor:
    """Per row of x, over the rows of y: the log-sum-exp of the logits, or the sum of the sigmoid losses."""
    x = logits.x
    x_ids, y_ids = logits.ids()
    out = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    _reduce_kernel[(triton.cdiv(x.shape[0], ROWS),)](
        x,
        logits.y,
        logits.scale,
        logits.bias,
        x_ids,
        y_ids,
        out,
        x.shape[0],
        logits.y.shape[0],
        x.shape[1],
        logits.first,
        logits.x_ids is not None,
        logits.sigmoid,
        _precision(x),
        ROWS,
        COLUMNS,
        CHUNK,
    )
    return out


def _gradient(logits: _Logits, x_lse: Tensor, y_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_j g_ij y_j (rows of x, D) with g the gradient of the logits, and Σ_j g_ij (rows of x,).

    x_lse and y_lse are the log-sum-exps of rows and columns, which the sigmoid loss does not read.
    """
    x = logits.x
    x_ids, y_ids = logits.ids()
    d_x = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    shares = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    _gradient_kernel[(triton.cdiv(x.shape[0], ROWS),)](
        x,
        logits.y,
        logits.scale,
        logits.bias,
        x_lse,
        y_lse,
        x_ids,
        y_ids,
        d_x,
        shares,
        x.shape[0],
        logits.y.shape[0],
        x.shape[1],
        logits.first,
        logits.x_ids is not None,
        logits.sigmoid,
        _precision(x),
        ROWS,
        COLUMNS,
        CHUNK,
    )
    return d_x, shares


def _precision(x: Tensor) -> str:
    """Logits are multiplied by up to 100: float32 inputs keep float32's accuracy, in three tensor-core products."""
    return "tf32x3" if x.dtype == torch.float32 else "ieee"


@triton.jit
def _logits(
    x,
    y,
    scale,
    bias,
    x_ids,
    y_ids,
    i,
    j,
    n,
    m,
    width,
    first,
    HAS_IDS: tl.constexpr,
    SIGMOID: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The tile of logits (-inf where a pair is skipped or outside), and where the positives are."""
    tile = tl.zeros((ROWS, COLUMNS), tl.float32)
    for left in range(0, width, CHUNK):
        c = left + tl.arange(0, CHUNK)
        xs = tl.load(x + i.to(tl.int64)[:, None] * width + c[None, :], (i < n)[:, None] & (c < width)[None, :], 0.0)
        ys = tl.load(y + j.to(tl.int64)[:, None] * width + c[None, :], (j < m)[:, None] & (c < width)[None, :], 0.0)
        tile = tl.dot(xs, tl.trans(ys), tile, input_precision=PRECISION)
    tile *= tl.load(scale)
    if SIGMOID:
        tile += tl.load(bias)
    positive = (i + first)[:, None] == j[None, :]
    keep = (i < n)[:, None] & (j < m)[None, :]
    if HAS_IDS:
        equal = tl.load(x_ids + i, i < n, 0)[:, None] == tl.load(y_ids + j, j < m, 0)[None, :]
        keep = keep & (positive | (equal == 0))
    return tl.where(keep, tile, float("-inf")), positive & keep


@triton.jit
def _reduce_kernel(
    x,
    y,
    scale,
    bias,
    x_ids,
    y_ids,
    out,
    n,
    m,
    width,
    first,
    HAS_IDS: tl.constexpr,
    SIGMOID: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    high = tl.full((ROWS,), -1e30, tl.float32)  # finite: a row that has no pair yet gives exp(-inf) = 0, not nan
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, m, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        tile, positive = _logits(
            x, y, scale, bias, x_ids, y_ids, i, j, n, m, width, first, HAS_IDS, SIGMOID, PRECISION, ROWS, COLUMNS, CHUNK
        )
        if SIGMOID:
            signed = tl.where(positive, -tile, tile)
            small = tl.exp(-tl.abs(signed))
            log1p = tl.where(small < 1e-3, small * (1.0 - small * (0.5 - small / 3.0)), tl.log(1.0 + small))
            total += tl.sum(tl.maximum(signed, 0.0) + log1p, 1)
        else:
            higher = tl.maximum(high, tl.max(tile, 1))
            total = total * tl.exp(high - higher) + tl.sum(tl.exp(tile - higher[:, None]), 1)
            high = higher
    if SIGMOID:
        tl.store(out + i, total, i < n)
    else:
        tl.store(out + i, high + tl.log(tl.where(i < n, total, 1.0)), i < n)


@triton.jit
def _gradient_kernel(
    x,
    y,
    scale,
    bias,
    x_lse,
    y_lse,
    x_ids,
    y_ids,
    d_x,
    shares,
    n,
    m,
    width,
    first,
    HAS_IDS: tl.constexpr,
    SIGMOID: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sums = tl.zeros((ROWS,), tl.float32)
    for start in range(0, m, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        tile, positive = _logits(
            x, y, scale, bias, x_ids, y_ids, i, j, n, m, width, first, HAS_IDS, SIGMOID, PRECISION, ROWS, COLUMNS, CHUNK
        )
        if SIGMOID:
            share = tl.sigmoid(tl.where(positive, -tile, tile))  # sigmoid(x) - 1 would cancel
            share = tl.where(positive, -share, share)
        else:
            of_row = tl.load(x_lse + i, i < n, 0.0)
            of_column = tl.load(y_lse + j, j < m, 0.0)
            share = 0.5 * (tl.exp(tile - of_row[:, None]) + tl.exp(tile - of_column[None, :]))
            share = tl.where(positive, share - 1.0, share)
        sums += tl.sum(share, 1)
        for left in range(0, width, CHUNK):
            c = left + tl.arange(0, CHUNK)
            inside = (c < width)[None, :]
            ys = tl.load(y + j.to(tl.int64)[:, None] * width + c[None, :], (j < m)[:, None] & inside, 0.0)
            spot = d_x + i.to(tl.int64)[:, None] * width + c[None, :]
            before = tl.load(spot, (i < n)[:, None] & inside, 0.0)
            tl.store(spot, tl.dot(share.to(ys.dtype), ys, before, input_precision=PRECISION), (i < n)[:, None] & inside)
        tl.debug_barrier()  # the next columns read what this program's other threads have just written
    tl.store(shares + i, sums, i < n)
