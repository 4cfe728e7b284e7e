# mypy: allow-untyped-defs
"""The two products of a grouped MLP on CUDA over rows in order of expert: by torch's grouped product where it is the
faster one, else by our own kernels.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.grouped_mlp.layout import Layout
from kernels.grouped_mlp.triton_layout import bins, tile_of
from kernels.launch import ceil_div


class Tiles(NamedTuple):
    """Sizes of a product's tiles and how it is run."""

    rows: int
    columns: int
    chunk: int  # of the summed dimension
    warps: int
    stages: int


GROUP = 8
"""Tiles of rows whose columns run together, so that what they share stays in the second-level cache."""


def tiles(dtype: torch.dtype) -> Tiles:
    return Tiles(64, 64, 32, 4, 2) if dtype == torch.float32 else Tiles(128, 128, 64, 8, 3)


def per_expert(rows: Tensor, stack: Tensor, plan: Layout, *, gather: bool) -> Tensor:
    """rows (R, I), or (N, I) to gather by token; stack (E, O, I) of any strides -> stack[expert] @ row: (R, O)."""
    count = plan.order.numel()
    num_experts, outputs, inputs = stack.shape
    out = rows.new_empty(count, outputs)
    size = tiles(rows.dtype)
    if count:
        high = count // size.rows + min(num_experts, count)
        _rows_kernel[(high * ceil_div(outputs, size.columns),)](
            rows,
            stack,
            plan.order,
            plan.ends,
            out,
            num_experts,
            high,
            inputs,
            outputs,
            *stack.stride(),
            plan.slot_of.shape[1],
            gather,
            precision(rows.dtype),
            bins(num_experts),
            size.rows,
            size.columns,
            size.chunk,
            GROUP,
            num_warps=size.warps,
            num_stages=size.stages,
        )
    return out


def weight_gradient(left: Tensor, right: Tensor, plan: Layout, dtype: torch.dtype, *, gather: str) -> Tensor:
    """Σ over an expert's rows of left ⊗ right, (R, L) and (R, M), the one ``gather`` names (N, ·) and gathered by token
    -> (E, L, M) in ``dtype``.
    """
    num_experts = plan.ends.numel()
    lefts, rights = left.shape[1], right.shape[1]
    out = torch.empty(num_experts, lefts, rights, dtype=dtype, device=left.device)
    size = tiles(left.dtype)
    grid = (ceil_div(lefts, size.rows) * ceil_div(rights, size.columns), num_experts)
    _weights_kernel[grid](
        left,
        right,
        plan.order,
        plan.ends,
        out,
        lefts,
        rights,
        plan.slot_of.shape[1],
        gather == "left",
        gather == "right",
        precision(left.dtype),
        size.rows,
        size.columns,
        size.chunk,
        num_warps=size.warps,
        num_stages=size.stages,
    )
    return out


def precision(dtype: torch.dtype) -> str:
    """float32 products follow torch's own switch for TensorFloat-32."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


@triton.jit
def _rows_kernel(
    rows,
    stack,
    order,
    ends,
    out,
    num_experts,
    high,
    inputs,
    outputs,
    stride_e,
    stride_o,
    stride_i,
    TOP_K: tl.constexpr,
    GATHER: tl.constexpr,
    PRECISION: tl.constexpr,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
):
    across = (outputs + COLUMNS - 1) // COLUMNS
    group = tl.program_id(0) // (GROUP * across)
    size = min(high - group * GROUP, GROUP)
    within = tl.program_id(0) % (GROUP * across)
    e, first, last = tile_of(group * GROUP + within % size, ends, num_experts, EXPERTS, ROWS)
    if e >= num_experts:
        return
    row = first + tl.arange(0, ROWS)
    column = (within // size) * COLUMNS + tl.arange(0, COLUMNS)
    safe = tl.minimum(row, last - 1)  # a row beyond the last repeats it: only the store needs a mask
    source = safe.to(tl.int64)
    if GATHER:
        source = (tl.load(order + safe) // TOP_K).to(tl.int64)
    at = stack + e.to(tl.int64) * stride_e + column.to(tl.int64)[None, :] * stride_o
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for left in range(0, inputs, CHUNK):
        c = left + tl.arange(0, CHUNK)
        a = tl.load(rows + source[:, None] * inputs + c[None, :], (c < inputs)[None, :], 0.0)
        b = tl.load(at + c[:, None] * stride_i, (c < inputs)[:, None] & (column < outputs)[None, :], 0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    at = out + row.to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), (row < last)[:, None] & (column < outputs)[None, :])


@triton.jit
def _weights_kernel(
    left,
    right,
    order,
    ends,
    out,
    lefts,
    rights,
    TOP_K: tl.constexpr,
    GATHER_LEFT: tl.constexpr,
    GATHER_RIGHT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    e = tl.program_id(1)
    start = tl.load(ends + e - 1, e > 0, 0)
    end = tl.load(ends + e)
    high = (lefts + ROWS - 1) // ROWS
    i = (tl.program_id(0) % high) * ROWS + tl.arange(0, ROWS)
    j = (tl.program_id(0) // high) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(start, end, CHUNK):
        row = first + tl.arange(0, CHUNK)
        used = row < end
        of_left = row.to(tl.int64)
        of_right = row.to(tl.int64)
        if GATHER_LEFT:
            of_left = (tl.load(order + row, used, 0) // TOP_K).to(tl.int64)
        if GATHER_RIGHT:
            of_right = (tl.load(order + row, used, 0) // TOP_K).to(tl.int64)
        a = tl.load(left + of_left[None, :] * lefts + i[:, None], used[None, :] & (i < lefts)[:, None], 0.0)
        b = tl.load(right + of_right[:, None] * rights + j[None, :], used[:, None] & (j < rights)[None, :], 0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    at = out + e.to(tl.int64) * lefts * rights + i[:, None] * rights + j[None, :]
    tl.store(at, total.to(out.dtype.element_ty), (i < lefts)[:, None] & (j < rights)[None, :])
