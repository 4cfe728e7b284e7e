# mypy: allow-untyped-defs
"""What a grouped MLP on CUDA does between its products, each once over memory: tokens to rows, SwiGLU, rows to tokens.

Rows go back to tokens by a sum over the K rows of a token, which reads in any order and writes once; adding rows to
tokens would need atomic additions, ten times slower.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.grouped_mlp.layout import Layout
from kernels.launch import ceil_div, power_of_two

ELEMENTS = 4096  # of a program's tile


def spread(x: Tensor, plan: Layout) -> Tensor:
    """Every token into its K rows: x (N, D), its rows contiguous -> (R, D). Reads every token once."""
    tokens, width = x.shape
    top_k = plan.slot_of.shape[1]
    out = x.new_empty(tokens * top_k, width)
    rows, columns = _tile(width, 2048)
    if tokens and top_k:
        _spread_kernel[(ceil_div(tokens, rows), ceil_div(width, columns))](
            x, plan.slot_of, out, tokens, x.stride(0), width, top_k, rows, columns
        )
    return out


def combine(rows: Tensor, plan: Layout, weights: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Σ_k weights[n, k] · rows[slot_of[n, k]], in float32: rows (R, D), weights (N, K) -> (N, D) in rows' dtype, or
    ``out``, whose rows are contiguous.
    """
    tokens, top_k = plan.slot_of.shape
    width = rows.shape[1]
    if out is None:
        out = rows.new_empty(tokens, width)
    size, columns = _tile(width, 1024)
    if tokens:
        _combine_kernel[(ceil_div(tokens, size), ceil_div(width, columns))](
            rows, plan.slot_of, weights, out, tokens, width, out.stride(0), top_k, weights is not None, size, columns
        )
    return out


def swiglu(gate_up: Tensor, plan: Layout, weights: Tensor | None = None) -> Tensor:
    """silu(gate) * up, times the assignment's weight if given: gate_up (R, 2H), weights (N, K) -> (R, H)."""
    count, double = gate_up.shape
    out = gate_up.new_empty(count, double // 2)
    rows, columns = _tile(double // 2, 256)
    if count:
        _swiglu_kernel[(ceil_div(count, rows), ceil_div(double // 2, columns))](
            gate_up, weights, plan.order, out, count, double // 2, weights is not None, rows, columns
        )
    return out


def swiglu_backward(d_hidden: Tensor, gate_up: Tensor, weights: Tensor, plan: Layout) -> tuple[Tensor, Tensor]:
    """d_hidden (R, H) of the unweighted hidden state -> gradients of gate_up (R, 2H) and of weights (N, K)."""
    count, hidden = d_hidden.shape
    d_gate_up = torch.empty_like(gate_up)
    d_weights = torch.empty_like(weights)
    rows, columns = _tile(hidden, 256)
    if count:
        _swiglu_backward_kernel[(ceil_div(count, rows),)](
            d_hidden, gate_up, weights, plan.order, d_gate_up, d_weights, count, hidden, rows, columns
        )
    return d_gate_up, d_weights


def _tile(width: int, most: int) -> tuple[int, int]:
    """Rows and columns of a tile of ELEMENTS, at most ``most`` columns wide."""
    columns = min(most, power_of_two(width))
    if width % 256 == 0 and width % columns:  # no idle columns, such as a quarter of 1,024 for 768
        columns = 256
    return max(1, ELEMENTS // columns), columns


@triton.jit
def _spread_kernel(
    x, slot_of, out, tokens, stride, width, TOP_K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (n < tokens)[:, None] & (c < width)[None, :]
    values = tl.load(x + n.to(tl.int64)[:, None] * stride + c[None, :], inside)
    for k in tl.static_range(TOP_K):
        slot = tl.load(slot_of + n * TOP_K + k, n < tokens, 0).to(tl.int64)
        tl.store(out + slot[:, None] * width + c[None, :], values, inside)


@triton.jit
def _combine_kernel(
    rows,
    slot_of,
    weights,
    out,
    tokens,
    width,
    stride,
    TOP_K: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (n < tokens)[:, None] & (c < width)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in tl.static_range(TOP_K):
        slot = tl.load(slot_of + n * TOP_K + k, n < tokens, 0).to(tl.int64)
        values = tl.load(rows + slot[:, None] * width + c[None, :], inside, 0.0).to(tl.float32)
        if WEIGHTED:
            values *= tl.load(weights + n * TOP_K + k, n < tokens, 0.0).to(tl.float32)[:, None]
        total += values
    tl.store(out + n.to(tl.int64)[:, None] * stride + c[None, :], total.to(out.dtype.element_ty), inside)


@triton.jit
def _swiglu_kernel(
    gate_up, weights, order, out, count, hidden, WEIGHTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < count)[:, None] & (c < hidden)[None, :]
    at = row.to(tl.int64)[:, None] * hidden
    gate = tl.load(gate_up + 2 * at + c[None, :], inside, 0.0).to(tl.float32)
    up = tl.load(gate_up + 2 * at + hidden + c[None, :], inside, 0.0).to(tl.float32)
    product = gate * tl.sigmoid(gate) * up
    if WEIGHTED:
        assignment = tl.load(order + row, row < count, 0)
        product *= tl.load(weights + assignment, row < count, 0.0).to(tl.float32)[:, None]
    tl.store(out + at + c[None, :], product.to(out.dtype.element_ty), inside)


@triton.jit
def _swiglu_backward_kernel(
    d_hidden,
    gate_up,
    weights,
    order,
    d_gate_up,
    d_weights,
    count,
    hidden,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    assignment = tl.load(order + row, row < count, 0)
    weight = tl.load(weights + assignment, row < count, 0.0).to(tl.float32)
    at = row.to(tl.int64)[:, None] * hidden
    d_weight = tl.zeros((ROWS,), tl.float32)
    kind = d_gate_up.dtype.element_ty
    for left in range(0, hidden, COLUMNS):
        c = left + tl.arange(0, COLUMNS)
        inside = (row < count)[:, None] & (c < hidden)[None, :]
        d = tl.load(d_hidden + at + c[None, :], inside, 0.0).to(tl.float32)
        gate = tl.load(gate_up + 2 * at + c[None, :], inside, 0.0).to(tl.float32)
        up = tl.load(gate_up + 2 * at + hidden + c[None, :], inside, 0.0).to(tl.float32)
        d_gate, d_up, _, part = swiglu_gradients(gate, up, d, weight[:, None])
        d_weight += part
        tl.store(d_gate_up + 2 * at + c[None, :], d_gate.to(kind), inside)
        tl.store(d_gate_up + 2 * at + hidden + c[None, :], d_up.to(kind), inside)
    tl.store(d_weights + assignment, d_weight.to(d_weights.dtype.element_ty), row < count)


@triton.jit
def swiglu_gradients(gate, up, d, weight):
    """gate, up and the gradient d of the unweighted hidden state (ROWS, H), weight (ROWS, 1), all float32 -> gradients
    of gate and up, the weighted hidden state, and the gradient of weight (ROWS,).
    """
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    weighted = d * weight
    d_gate = weighted * up * (sigmoid + silu * (1.0 - sigmoid))
    return d_gate, weighted * silu, weight * silu * up, tl.sum(d * silu * up, 1)
