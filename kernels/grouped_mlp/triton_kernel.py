# mypy: allow-untyped-defs
"""Grouped MLP on CUDA: assignments sorted by expert, each expert's rows padded to whole tiles, one launch per product.

The gather of tokens is fused into the products that read them and SwiGLU with the routing weight into the first one.
No step waits for the host: the number of tiles is bounded from the shapes, and tiles beyond the last used one return
at once.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64  # rows, columns; not tuned on a GPU
CHUNK = 32  # of the summed dimension
GROUP_ROWS = 64  # rows an expert's share is padded to


@dataclass(frozen=True)
class Layout:
    """Where every assignment is computed: R padded rows in tiles of GROUP_ROWS that each belong to one expert."""

    token: Tensor  # (R,) int64, -1 for padding
    slot_of: Tensor  # (N, K) the row of every assignment
    expert: Tensor  # (R / GROUP_ROWS,) of every tile, -1 for the unused ones at the end
    first: Tensor  # (E + 1,) first row of every expert


def layout(indices: Tensor, num_experts: int) -> Layout:
    """indices (N, K) int64 -> Layout; without waiting for the device."""
    chosen = indices.reshape(-1)
    tiles = chosen.numel() // GROUP_ROWS + min(num_experts, chosen.numel())
    counts = torch.zeros(num_experts, dtype=torch.int64, device=chosen.device)
    counts.scatter_add_(0, chosen, torch.ones_like(chosen))
    padded = (counts + GROUP_ROWS - 1) // GROUP_ROWS * GROUP_ROWS
    first = torch.nn.functional.pad(padded.cumsum(0), (1, 0))
    by_expert = chosen.argsort(stable=True)
    of = chosen[by_expert]
    before = counts.cumsum(0) - counts
    row = first[of] + torch.arange(chosen.numel(), device=chosen.device) - before[of]
    token = torch.full((tiles * GROUP_ROWS,), -1, device=chosen.device)
    token[row] = by_expert // indices.shape[1]
    start = torch.arange(tiles, device=chosen.device) * GROUP_ROWS
    expert = torch.searchsorted(first, start, right=True) - 1
    expert = torch.where(start < first[-1], expert, -1)
    slot_of = torch.empty_like(chosen).scatter_(0, by_expert, row).view_as(indices)
    return Layout(token, slot_of, expert, first)


def forward(
    x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """-> y (N, D) and the pre-activations (R, 2H), both in ``dtype``."""
    x, w_in, w_out = (tensor.to(dtype).contiguous() for tensor in (x, w_in, w_out))
    plan = layout(indices, w_in.shape[0])
    rows = plan.token.numel()
    width, hidden = w_out.shape[1:]
    scale = _at_slots(weights, plan)
    gate_up = x.new_empty(rows, 2 * hidden)
    hidden_state = x.new_empty(rows, hidden)
    if rows:
        _gate_up[(rows // GROUP_ROWS, triton.cdiv(hidden, TILE))](
            x,
            w_in,
            plan.token,
            plan.expert,
            scale,
            gate_up,
            hidden_state,
            width,
            hidden,
            _precision(x),
            GROUP_ROWS,
            TILE,
            CHUNK,
        )
    out = _per_expert(hidden_state, w_out, plan, gather=False)
    return _combine(out, plan), gate_up


def backward(
    grad: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w_in, w_out, weights in their own dtypes."""
    dtype = gate_up.dtype
    plan = layout(indices, w_in.shape[0])
    rows = plan.token.numel()
    hidden = w_out.shape[2]
    cast = x.to(dtype).contiguous()
    grad = grad.to(dtype).contiguous()
    d_hidden = _per_expert(grad, w_out.to(dtype).mT, plan, gather=True)
    d_gate_up = torch.empty_like(gate_up)
    hidden_state = gate_up.new_empty(rows, hidden)
    d_scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    if rows:
        _swiglu_backward[(rows,)](
            gate_up,
            d_hidden,
            _at_slots(weights, plan),
            plan.token,
            d_gate_up,
            hidden_state,
            d_scale,
            hidden,
            triton.next_power_of_2(hidden),
        )
    d_out = _weight_gradient(grad, hidden_state, plan, w_out.dtype, gather_left=True)
    d_in = _weight_gradient(d_gate_up, cast, plan, w_in.dtype, gather_left=False)
    d_x = _combine(_per_expert(d_gate_up, w_in.to(dtype).mT, plan, gather=False), plan)
    return d_x.to(x.dtype), d_in, d_out, d_scale[plan.slot_of].to(weights.dtype)


def _per_expert(rows: Tensor, stack: Tensor, plan: Layout, *, gather: bool) -> Tensor:
    """rows (R, I), or (N, I) to gather by token; stack (E, O, I) of any strides -> stack[expert] @ row: (R, O)."""
    count = plan.token.numel()
    outputs, inputs = stack.shape[1:]
    out = rows.new_empty(count, outputs)
    if count:
        _rows_kernel[(count // GROUP_ROWS, triton.cdiv(outputs, TILE))](
            rows,
            stack,
            plan.token,
            plan.expert,
            out,
            inputs,
            outputs,
            *stack.stride(),
            gather,
            _precision(rows),
            GROUP_ROWS,
            TILE,
            CHUNK,
        )
    return out


def _weight_gradient(left: Tensor, right: Tensor, plan: Layout, dtype: torch.dtype, *, gather_left: bool) -> Tensor:
    """Σ over an expert's rows of left ⊗ right, one of which is (N, ·) and gathered by token -> (E, L, R) in
    ``dtype``.
    """
    num_experts = plan.first.numel() - 1
    out = torch.empty(num_experts, left.shape[1], right.shape[1], dtype=dtype, device=left.device)
    lefts, rights = out.shape[1:]
    _weights_kernel[(num_experts, triton.cdiv(lefts, TILE), triton.cdiv(rights, TILE))](
        left, right, plan.token, plan.first, out, lefts, rights, gather_left, _precision(left), TILE, CHUNK
    )
    return out


def _combine(rows: Tensor, plan: Layout) -> Tensor:
    """Σ_k rows[slot_of[n, k]], in float32: (R, D) -> (N, D)."""
    tokens, top_k = plan.slot_of.shape
    out = rows.new_empty(tokens, rows.shape[1])
    if tokens:
        width = rows.shape[1]
        _combine_kernel[(tokens,)](rows, plan.slot_of, out, width, top_k, triton.next_power_of_2(width))
    return out


def _at_slots(weights: Tensor, plan: Layout) -> Tensor:
    scale = torch.zeros(plan.token.numel(), dtype=torch.float32, device=weights.device)
    return scale.index_copy_(0, plan.slot_of.reshape(-1), weights.reshape(-1).float())


def _precision(tensor: Tensor) -> str:
    """float32 products follow torch's own switch for TensorFloat-32."""
    return "tf32" if tensor.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


@triton.jit
def _gate_up(
    x,
    w_in,
    token,
    expert,
    scale,
    gate_up,
    hidden_state,
    width,
    hidden,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    e = tl.load(expert + tl.program_id(0))
    if e < 0:
        return
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    source = tl.load(token + row)
    gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    up = tl.zeros((ROWS, COLUMNS), tl.float32)
    for left in range(0, width, CHUNK):
        c = left + tl.arange(0, CHUNK)
        inside = (c < width)[None, :]
        xs = tl.load(x + source[:, None] * width + c[None, :], (source >= 0)[:, None] & inside, 0.0)
        spot = w_in + e * 2 * hidden * width + column[:, None] * width + c[None, :]
        mask = (column < hidden)[:, None] & inside
        gate = tl.dot(xs, tl.trans(tl.load(spot, mask, 0.0)), gate, input_precision=PRECISION)
        up = tl.dot(xs, tl.trans(tl.load(spot + hidden * width, mask, 0.0)), up, input_precision=PRECISION)
    mask = (column < hidden)[None, :]
    at = gate_up + row.to(tl.int64)[:, None] * 2 * hidden + column[None, :]
    tl.store(at, gate.to(gate_up.dtype.element_ty), mask)
    tl.store(at + hidden, up.to(gate_up.dtype.element_ty), mask)
    product = gate * tl.sigmoid(gate) * up * tl.load(scale + row)[:, None]
    at = hidden_state + row.to(tl.int64)[:, None] * hidden + column[None, :]
    tl.store(at, product.to(hidden_state.dtype.element_ty), mask)


@triton.jit
def _rows_kernel(
    rows,
    stack,
    token,
    expert,
    out,
    inputs,
    outputs,
    stride_e,
    stride_o,
    stride_i,
    GATHER: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    e = tl.load(expert + tl.program_id(0))
    if e < 0:
        return
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    source = tl.load(token + row)
    used = (source >= 0)[:, None]
    if not GATHER:
        source = row.to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for left in range(0, inputs, CHUNK):
        c = left + tl.arange(0, CHUNK)
        a = tl.load(rows + source[:, None] * inputs + c[None, :], used & (c < inputs)[None, :], 0.0)
        spot = stack + e * stride_e + c[:, None] * stride_i + column[None, :] * stride_o
        b = tl.load(spot, (c < inputs)[:, None] & (column < outputs)[None, :], 0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    at = out + row.to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), (column < outputs)[None, :])


@triton.jit
def _weights_kernel(
    left,
    right,
    token,
    first,
    out,
    lefts,
    rights,
    GATHER_LEFT: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    e = tl.program_id(0)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    j = tl.program_id(2) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(tl.load(first + e), tl.load(first + e + 1), CHUNK):
        row = start + tl.arange(0, CHUNK)
        source = tl.load(token + row)
        used = source >= 0
        left_row = row
        right_row = source
        if GATHER_LEFT:
            left_row = source
            right_row = row
        a = tl.load(left + left_row[None, :] * lefts + i[:, None], used[None, :] & (i < lefts)[:, None], 0.0)
        b = tl.load(right + right_row[:, None] * rights + j[None, :], used[:, None] & (j < rights)[None, :], 0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    at = out + e.to(tl.int64) * lefts * rights + i[:, None] * rights + j[None, :]
    tl.store(at, total.to(out.dtype.element_ty), (i < lefts)[:, None] & (j < rights)[None, :])


@triton.jit
def _swiglu_backward(gate_up, d_hidden, scale, token, d_gate_up, hidden_state, d_scale, hidden, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    if tl.load(token + row) < 0:
        return
    c = tl.arange(0, WIDTH)
    inside = c < hidden
    gate = tl.load(gate_up + row * 2 * hidden + c, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * hidden + hidden + c, inside, 0.0).to(tl.float32)
    d = tl.load(d_hidden + row * hidden + c, inside, 0.0).to(tl.float32)
    weight = tl.load(scale + row)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(d_scale + row, tl.sum(d * silu * up, 0))
    kind = d_gate_up.dtype.element_ty
    d_gate = weight * d * up * (sigmoid + silu * (1.0 - sigmoid))
    tl.store(d_gate_up + row * 2 * hidden + c, d_gate.to(kind), inside)
    tl.store(d_gate_up + row * 2 * hidden + hidden + c, (weight * d * silu).to(kind), inside)
    tl.store(hidden_state + row * hidden + c, (weight * silu * up).to(kind), inside)


@triton.jit
def _combine_kernel(rows, slot_of, out, width, top_k, WIDTH: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float32)
    for k in range(top_k):
        slot = tl.load(slot_of + n * top_k + k)
        total += tl.load(rows + slot * width + c, c < width, 0.0).to(tl.float32)
    tl.store(out + n * width + c, total.to(out.dtype.element_ty), c < width)
