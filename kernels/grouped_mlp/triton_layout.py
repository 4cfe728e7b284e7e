# mypy: allow-untyped-defs
"""Where every assignment of a grouped MLP is computed on CUDA: rows in order of expert, those of one expert adjacent.

A stable counting sort in three launches: no step waits for the host and no shape depends on the routing, so that a CUDA
graph may hold it. Rows are not padded: N K of them, and a product finds its tiles from the experts' last rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.grouped_mlp.layout import Layout
from kernels.launch import ceil_div, power_of_two

SPAN = 256  # assignments that are ranked at once
PROGRAMS = 4096  # at most: beyond, each takes several spans


def layout(indices: Tensor, num_experts: int) -> Layout:
    """indices (N, K) int64 in [0, E) -> Layout. An index outside of it is a device-side assertion, as in torch's own
    indexing on CUDA.
    """
    indices = indices.contiguous()
    count = indices.numel()
    order = indices.new_empty(count, dtype=torch.int32)
    slot_of = torch.empty_like(indices, dtype=torch.int32)
    if not count:
        return Layout(order, slot_of, indices.new_zeros(num_experts, dtype=torch.int32))
    ends = indices.new_empty(num_experts, dtype=torch.int32)
    experts = bins(num_experts)
    span = max(SPAN, power_of_two(ceil_div(count, PROGRAMS)))
    programs = ceil_div(count, span)
    counts = indices.new_empty((experts, programs), dtype=torch.int32)
    totals = indices.new_empty(experts, dtype=torch.int32)
    _count_kernel[(programs,)](indices, counts, count, num_experts, programs, experts, span, SPAN)
    _scan_kernel[(experts,)](counts, totals, programs, power_of_two(programs))
    _place_kernel[(programs,)](
        indices, counts, totals, order, slot_of, ends, count, num_experts, programs, experts, span, SPAN, num_warps=8
    )
    return Layout(order, slot_of, ends)


def bins(num_experts: int) -> int:
    """The power of two that a vector with an element per expert has, in a kernel."""
    return max(32, power_of_two(num_experts))


@triton.jit(debug=True)  # an assertion on the device is checked only so
def _count_kernel(
    indices, counts, count, num_experts, programs, EXPERTS: tl.constexpr, WHOLE: tl.constexpr, SUB: tl.constexpr
):
    total = tl.zeros((EXPERTS,), tl.int32)
    for start in range(0, WHOLE, SUB):
        at = tl.program_id(0) * WHOLE + start + tl.arange(0, SUB)
        e = tl.load(indices + at, at < count, 0).to(tl.int32)
        tl.device_assert((e >= 0) & (e < num_experts), "indices name an expert that does not exist")
        total += tl.histogram(e, EXPERTS, mask=at < count)
    tl.store(counts + tl.arange(0, EXPERTS) * programs + tl.program_id(0), total)


@triton.jit
def _scan_kernel(counts, totals, programs, PROGRAMS: tl.constexpr):
    """An expert's counts (programs,) become how many of its assignments the programs before have."""
    k = tl.arange(0, PROGRAMS)
    mine = counts + tl.program_id(0) * programs + k
    counted = tl.load(mine, k < programs, 0)
    upto = tl.cumsum(counted, 0)
    tl.store(mine, upto - counted, k < programs)
    tl.store(totals + tl.program_id(0), tl.sum(counted, 0))


@triton.jit
def _place_kernel(
    indices,
    before,
    totals,
    order,
    slot_of,
    ends,
    count,
    num_experts,
    programs,
    EXPERTS: tl.constexpr,
    WHOLE: tl.constexpr,
    SUB: tl.constexpr,
):
    i = tl.arange(0, EXPERTS)
    total = tl.load(totals + i)
    end = tl.cumsum(total, 0)
    if tl.program_id(0) == 0:
        tl.store(ends + i, end, i < num_experts)
    base = end - total + tl.load(before + i * programs + tl.program_id(0))
    for start in range(0, WHOLE, SUB):
        first = tl.program_id(0) * WHOLE + start
        at = first + tl.arange(0, SUB)
        used = at < count
        e = tl.load(indices + at, used, 0).to(tl.int32)
        rank = tl.zeros((SUB,), tl.int32)
        for left in range(0, SUB, 32):
            earlier = first + left + tl.arange(0, 32)
            other = tl.load(indices + earlier, earlier < count, 0).to(tl.int32)
            same = (e[:, None] == other[None, :]) & (earlier[None, :] < at[:, None])
            rank += tl.sum(same.to(tl.int32), 1)
        slot = tl.gather(base, e, 0) + rank
        tl.store(slot_of + at, slot, used)
        tl.store(order + slot, at, used)
        if WHOLE > SUB:
            base += tl.histogram(e, EXPERTS, mask=used)


@triton.jit
def tile_of(pid, ends, num_experts, EXPERTS: tl.constexpr, ROWS: tl.constexpr):
    """-> the expert, first row and one past the last row of tile ``pid``; beyond the last tile, an empty one."""
    i = tl.arange(0, EXPERTS)
    end = tl.load(ends + i, i < num_experts, 0)
    start = tl.load(ends + i - 1, (i > 0) & (i < num_experts), 0)
    tiles = tl.where(i < num_experts, (end - start + ROWS - 1) // ROWS, 0)
    upto = tl.cumsum(tiles, 0)
    e = tl.sum((upto <= pid).to(tl.int32), 0)
    mine = i == e
    first = tl.sum(tl.where(mine, start + (pid - upto + tiles) * ROWS, 0), 0)
    return e, first, tl.sum(tl.where(mine, end, 0), 0)
