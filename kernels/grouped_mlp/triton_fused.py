# mypy: allow-untyped-defs
"""Grouped MLP on CUDA for narrow experts, whose hidden state fits a tile: two launches forward, three backward.

One program computes both products of its rows: the hidden state stays in registers, and the matrices are cast as they
are read. Backward likewise: one kernel for all that a row needs, one for both matrices' gradients.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.grouped_mlp.layout import Layout
from kernels.grouped_mlp.triton_glue import combine, swiglu_gradients
from kernels.grouped_mlp.triton_layout import bins, tile_of
from kernels.grouped_mlp.triton_products import precision
from kernels.launch import ceil_div, power_of_two

CHUNK = 64
"""Rows that the gradients of matrices add at a time."""


class Tiles(NamedTuple):
    """Sizes of a kernel's tiles and how it is run."""

    rows: int
    columns: int  # at a time
    warps: int
    stages: int


def row_tiles(dtype: torch.dtype) -> Tiles:
    """Of the kernels over rows: small ones, of which several run on a processor at once, hide each other's waiting."""
    return Tiles(32, 16, 4, 2) if dtype == torch.float32 else Tiles(64, 64, 4, 2)


def matrix_tiles(hidden: int, dtype: torch.dtype) -> Tiles:
    """Of the matrices' gradients: rows are hidden channels, columns those of a token."""
    if dtype == torch.float32:
        return Tiles(32, 64, 4, 2)
    return Tiles(64, 128, 4, 2) if hidden <= 64 else Tiles(128, 128, 8, 3)


def forward(
    x: Tensor, w_in: Tensor, w_out: Tensor, weights: Tensor, plan: Layout, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x (N, D), w_in (E, 2H, D), w_out (E, D, H), contiguous, of any dtype -> y (N, D) and the pre-activations (R, 2H)
    in ``dtype``.
    """
    num_experts, width, hidden = w_out.shape
    count = plan.order.numel()
    gate_up = x.new_empty(count, 2 * hidden, dtype=dtype)
    rows = x.new_empty(count, width, dtype=dtype)
    size = row_tiles(dtype)
    if count:
        _forward_kernel[(grid(count, num_experts, size.rows),)](
            x,
            w_in,
            w_out,
            plan.order,
            plan.ends,
            gate_up,
            rows,
            num_experts,
            plan.slot_of.shape[1],
            width,
            hidden,
            precision(dtype),
            bins(num_experts),
            size.rows,
            fitted(width, size.columns),
            fitted(hidden),
            num_warps=size.warps,
            num_stages=size.stages,
        )
    return combine(rows, plan, weights), gate_up


def backward(
    grad: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor, weights: Tensor, gate_up: Tensor, plan: Layout
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w_in, w_out, weights in their own dtypes."""
    num_experts, width, hidden = w_out.shape
    count = plan.order.numel()
    d_gate_up = torch.empty_like(gate_up)
    hidden_state = gate_up.new_empty(count, hidden)
    rows = gate_up.new_empty(count, width)
    d_weights = torch.empty_like(weights)
    size = row_tiles(gate_up.dtype)
    shapes = (num_experts, plan.slot_of.shape[1], width, hidden, precision(gate_up.dtype))
    if count:
        _backward_kernel[(grid(count, num_experts, size.rows),)](
            grad,
            w_in,
            w_out,
            gate_up,
            weights,
            plan.order,
            plan.ends,
            d_gate_up,
            hidden_state,
            rows,
            d_weights,
            *shapes,
            bins(num_experts),
            size.rows,
            fitted(width, size.columns),
            fitted(hidden),
            num_warps=size.warps,
            num_stages=size.stages,
        )
    d_in = torch.empty_like(w_in)
    d_out = torch.empty_like(w_out)
    size = matrix_tiles(hidden, gate_up.dtype)
    tile_h = fitted(hidden, size.rows)
    tile_d = fitted(width, size.columns)
    parts = 3 * ceil_div(hidden, tile_h) * ceil_div(width, tile_d)
    _matrices_kernel[(num_experts, parts)](
        grad,
        x,
        d_gate_up,
        hidden_state,
        plan.order,
        plan.ends,
        d_in,
        d_out,
        *shapes[1:],
        tile_h,
        tile_d,
        CHUNK if gate_up.dtype != torch.float32 else CHUNK // 4,
        num_warps=size.warps,
        num_stages=size.stages,
    )
    return combine(rows, plan, out=torch.empty_like(x)), d_in, d_out, d_weights


def grid(count: int, num_experts: int, rows: int) -> int:
    """Tiles of ``rows`` rows, at most: every expert may have one that is not full."""
    return count // rows + min(num_experts, count)


def fitted(size: int, most: int = 128) -> int:
    """The side of a tile for ``size`` channels: a power of two, 16 at least, ``most`` at most."""
    return min(most, max(16, power_of_two(size)))


@triton.jit
def _forward_kernel(
    x,
    w_in,
    w_out,
    order,
    ends,
    gate_up,
    out,
    num_experts,
    TOP_K: tl.constexpr,
    width: tl.constexpr,
    hidden: tl.constexpr,
    PRECISION: tl.constexpr,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    e, first, last = tile_of(tl.program_id(0), ends, num_experts, EXPERTS, ROWS)
    if e >= num_experts:
        return
    kind = gate_up.dtype.element_ty
    row = first + tl.arange(0, ROWS)
    used = row < last
    token = (tl.load(order + row, used, 0) // TOP_K).to(tl.int64)
    j = tl.arange(0, HIDDEN)
    mine = w_in + e.to(tl.int64) * 2 * hidden * width
    gate = tl.zeros((ROWS, HIDDEN), tl.float32)
    up = tl.zeros((ROWS, HIDDEN), tl.float32)
    for left in range(0, width, CHUNK):
        c = left + tl.arange(0, CHUNK)
        xs = tl.load(x + token[:, None] * width + c[None, :], used[:, None] & (c < width)[None, :], 0.0).to(kind)
        spot = mine + j[None, :] * width + c[:, None]
        mask = (c < width)[:, None] & (j < hidden)[None, :]
        gate = tl.dot(xs, tl.load(spot, mask, 0.0).to(kind), gate, input_precision=PRECISION)
        up = tl.dot(xs, tl.load(spot + hidden * width, mask, 0.0).to(kind), up, input_precision=PRECISION)
    inside = used[:, None] & (j < hidden)[None, :]
    at = gate_up + row.to(tl.int64)[:, None] * 2 * hidden + j[None, :]
    tl.store(at, gate.to(kind), inside)
    tl.store(at + hidden, up.to(kind), inside)
    state = (gate * tl.sigmoid(gate) * up).to(kind)
    mine = w_out + e.to(tl.int64) * hidden * width
    for left in range(0, width, CHUNK):
        c = left + tl.arange(0, CHUNK)
        mask = (j < hidden)[:, None] & (c < width)[None, :]
        matrix = tl.load(mine + c[None, :] * hidden + j[:, None], mask, 0.0).to(kind)
        values = tl.dot(state, matrix, input_precision=PRECISION)
        spot = out + row.to(tl.int64)[:, None] * width + c[None, :]
        tl.store(spot, values.to(kind), used[:, None] & (c < width)[None, :])


@triton.jit
def _backward_kernel(
    grad,
    w_in,
    w_out,
    gate_up,
    weights,
    order,
    ends,
    d_gate_up,
    hidden_state,
    d_rows,
    d_weights,
    num_experts,
    TOP_K: tl.constexpr,
    width: tl.constexpr,
    hidden: tl.constexpr,
    PRECISION: tl.constexpr,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    e, first, last = tile_of(tl.program_id(0), ends, num_experts, EXPERTS, ROWS)
    if e >= num_experts:
        return
    kind = gate_up.dtype.element_ty
    row = first + tl.arange(0, ROWS)
    used = row < last
    assignment = tl.load(order + row, used, 0)
    token = (assignment // TOP_K).to(tl.int64)
    j = tl.arange(0, HIDDEN)
    mine = w_out + e.to(tl.int64) * hidden * width
    d = tl.zeros((ROWS, HIDDEN), tl.float32)
    for left in range(0, width, CHUNK):
        c = left + tl.arange(0, CHUNK)
        g = tl.load(grad + token[:, None] * width + c[None, :], used[:, None] & (c < width)[None, :], 0.0).to(kind)
        mask = (c < width)[:, None] & (j < hidden)[None, :]
        matrix = tl.load(mine + c[:, None] * hidden + j[None, :], mask, 0.0).to(kind)
        d = tl.dot(g, matrix, d, input_precision=PRECISION)
    inside = used[:, None] & (j < hidden)[None, :]
    at = row.to(tl.int64)[:, None] * 2 * hidden + j[None, :]
    gate = tl.load(gate_up + at, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up + at + hidden, inside, 0.0).to(tl.float32)
    weight = tl.load(weights + assignment, used, 0.0).to(tl.float32)[:, None]
    d_gate, d_up, state, d_weight = swiglu_gradients(gate, up, d, weight)
    d_gate = d_gate.to(kind)
    d_up = d_up.to(kind)
    tl.store(d_weights + assignment, d_weight.to(d_weights.dtype.element_ty), used)
    tl.store(hidden_state + row.to(tl.int64)[:, None] * hidden + j[None, :], state.to(kind), inside)
    tl.store(d_gate_up + at, d_gate, inside)
    tl.store(d_gate_up + at + hidden, d_up, inside)
    mine = w_in + e.to(tl.int64) * 2 * hidden * width
    for left in range(0, width, CHUNK):
        c = left + tl.arange(0, CHUNK)
        spot = mine + j[:, None] * width + c[None, :]
        mask = (j < hidden)[:, None] & (c < width)[None, :]
        values = tl.dot(d_gate, tl.load(spot, mask, 0.0).to(kind), input_precision=PRECISION)
        values = tl.dot(d_up, tl.load(spot + hidden * width, mask, 0.0).to(kind), values, input_precision=PRECISION)
        spot = d_rows + row.to(tl.int64)[:, None] * width + c[None, :]
        tl.store(spot, values.to(kind), used[:, None] & (c < width)[None, :])


@triton.jit
def _matrices_kernel(
    grad,
    x,
    d_gate_up,
    hidden_state,
    order,
    ends,
    d_in,
    d_out,
    TOP_K: tl.constexpr,
    width: tl.constexpr,
    hidden: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_D: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A tile of d_in (hidden channels of gate or up, D) or of d_out transposed (hidden channels, D): both are a sum
    over the expert's rows of hidden channels of a row times channels of its token.
    """
    e = tl.program_id(0)
    start = tl.load(ends + e - 1, e > 0, 0)
    end = tl.load(ends + e)
    across: tl.constexpr = (width + TILE_D - 1) // TILE_D
    down: tl.constexpr = (hidden + TILE_H - 1) // TILE_H
    part = tl.program_id(1) // across
    j = (part % down) * TILE_H + tl.arange(0, TILE_H)
    c = (tl.program_id(1) % across) * TILE_D + tl.arange(0, TILE_D)
    inside = (j < hidden)[:, None] & (c < width)[None, :]
    offset = e.to(tl.int64) * hidden * width
    if part < 2 * down:
        of = part // down * hidden
        total = _outer(d_gate_up + of, 2 * hidden, x, order, start, end, j, c, TOP_K, width, hidden, PRECISION, CHUNK)
        at = d_in + 2 * offset + (of + j)[:, None] * width + c[None, :]
        tl.store(at, total.to(d_in.dtype.element_ty), inside)
    else:
        total = _outer(hidden_state, hidden, grad, order, start, end, j, c, TOP_K, width, hidden, PRECISION, CHUNK)
        tl.store(d_out + offset + c[None, :] * hidden + j[:, None], total.to(d_out.dtype.element_ty), inside)


@triton.jit
def _outer(
    left,
    stride: tl.constexpr,
    tokens,
    order,
    start,
    end,
    j,
    c,
    TOP_K: tl.constexpr,
    width: tl.constexpr,
    hidden: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Sum over rows start..end of left[row, j] * tokens[token of row, c]."""
    kind = left.dtype.element_ty
    total = tl.zeros((j.shape[0], c.shape[0]), tl.float32)
    for first in range(start, end, CHUNK):
        row = first + tl.arange(0, CHUNK)
        used = row < end
        token = (tl.load(order + row, used, 0) // TOP_K).to(tl.int64)
        at = left + row.to(tl.int64)[None, :] * stride + j[:, None]
        a = tl.load(at, used[None, :] & (j < hidden)[:, None], 0.0)
        b = tl.load(tokens + token[:, None] * width + c[None, :], used[:, None] & (c < width)[None, :], 0.0).to(kind)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total
