"""Grouped MLP in plain torch: assignments sorted by expert, experts of like load padded into batched products.

Routing changes from step to step, and with it the shapes of the products; oneDNN compiles a kernel for every shape it
has not seen, which costs ten times a small product itself. Loads are therefore rounded up to a coarse ladder, and a
block takes a power of two of experts, the lighter ones padded: few shapes, met again and again. Expert matrices are
cast and put in falling order of load once: a block's matrices are then a view, and so are their gradients. The routing
weights ride on the sum over each token's rows. Saved for the backward pass: the inputs, and in the compute dtype the
ordered matrices and the (gate, up) pre-activations; everything else is cheap and recomputed.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**20
"""Elements of a block's widest activation: a block's calls cost less than its arithmetic, and its tensors stay near."""
SPARED = 2**15
"""Elements of padding that are worth a block of their own, whose calls cost as much as they do."""
RUNGS = 8
"""Steps of the ladder of padded loads per doubling."""
SMALLEST = 16
"""Rows of the lowest rung: what a matrix unit multiplies at once."""


@dataclass(frozen=True)
class Block:
    """Experts that are computed together in ``rows`` rows each; what a load does not fill is padding."""

    experts: slice  # among the experts in falling order of load
    rows: int
    start: int  # of the block's rows among all padded rows

    @property
    def size(self) -> int:
        return self.experts.stop - self.experts.start

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + self.size * self.rows)


class Layout(NamedTuple):
    """Where every assignment is computed. A padding row repeats token 0, and nobody reads its result."""

    loads: Tensor  # (E,) falling
    order: Tensor  # (E,) the expert that has each of them
    token: Tensor  # (R,) of every padded row
    slot_of: Tensor  # (N, K) the row of every assignment


class Saved(NamedTuple):
    """What `backward` needs of `forward`, in the compute dtype; the matrices are in falling order of load."""

    gate_up: Tensor  # (R, 2H) pre-activations
    w_in: Tensor  # (E, 2H, D)
    w_out: Tensor  # (E, D, H)


def forward(
    x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Saved, Layout]:
    """-> y (N, D) in ``dtype``, and what `backward` needs.

    Inside a block, hidden channels come before rows, (size, 2H, rows): what is elementwise then runs over long
    contiguous stretches however narrow the experts are.
    """
    widest = max(w_in.shape[1:])
    plan = layout(indices, w_in.shape[0], widest)
    width, hidden = w_out.shape[1:]
    x = x.to(dtype)
    w_in = w_in.to(dtype).index_select(0, plan.order)
    w_out = w_out.to(dtype).index_select(0, plan.order)
    gate_up = x.new_empty(plan.token.numel(), 2 * hidden)
    out = x.new_empty(plan.token.numel(), width)
    for block in cut(plan.loads.tolist(), widest):
        gathered = x.index_select(0, plan.token[block.span]).view(block.size, block.rows, width)
        pre = gate_up[block.span].view(block.size, 2 * hidden, block.rows)
        torch.bmm(w_in[block.experts], gathered.mT, out=pre)
        gate, up = pre.chunk(2, dim=1)
        hidden_state = F.silu(gate).mul_(up)
        rows = out[block.span].view(block.size, block.rows, width)
        torch.bmm(hidden_state.mT, w_out[block.experts].mT, out=rows)
    return _combined(out, plan.slot_of, weights.to(dtype)), Saved(gate_up, w_in, w_out), plan


def backward(
    grad: Tensor, x: Tensor, weights: Tensor, saved: Saved, plan: Layout
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and weights in their own dtypes, of w_in and w_out in the compute dtype."""
    gate_up, w_in, w_out = saved
    dtype = gate_up.dtype
    width, hidden = w_out.shape[1:]
    scale = _at_slots(weights, plan, dtype)
    cast = x.to(dtype)
    grad = grad.to(dtype)
    d_x = cast.new_empty(plan.token.numel(), width)
    d_scale = x.new_empty(plan.token.numel(), dtype=torch.promote_types(dtype, torch.float32))
    d_in = torch.empty_like(w_in)
    d_out = torch.empty_like(w_out)
    loads = plan.loads.tolist()
    for block in cut(loads, max(w_in.shape[1:])):
        token = plan.token[block.span]
        d_y = grad.index_select(0, token).view(block.size, block.rows, width)
        d_hidden = torch.bmm(w_out[block.experts].mT, d_y.mT)
        pre = gate_up[block.span].view(block.size, 2 * hidden, block.rows)
        block_scale = scale[block.span].view(block.size, 1, block.rows)
        d_pre, hidden_state, d_weight = _swiglu_backward(d_hidden, pre, block_scale)
        d_scale[block.span] = d_weight.flatten()
        torch.bmm(d_y.mT, hidden_state.mT, out=d_out[block.experts])
        rows = d_x[block.span].view(block.size, block.rows, width)
        torch.bmm(d_pre.mT, w_in[block.experts], out=rows)
        gathered = cast.index_select(0, token).view(block.size, block.rows, width)
        torch.bmm(d_pre, gathered, out=d_in[block.experts])
    idle = slice(len(loads) - loads.count(0), None)
    d_in[idle] = 0
    d_out[idle] = 0
    place = plan.order.argsort()
    d_matrices = d_in.index_select(0, place), d_out.index_select(0, place)
    d_weights = d_scale.index_select(0, plan.slot_of.flatten()).view_as(weights)
    return _combined(d_x, plan.slot_of).to(x.dtype), *d_matrices, d_weights.to(weights.dtype)


def layout(indices: Tensor, num_experts: int, widest: int) -> Layout:
    """indices (N, K) -> where assignments go when `cut` makes the blocks."""
    chosen = indices.reshape(-1)
    counts = torch.bincount(chosen, minlength=num_experts)
    if counts.numel() != num_experts:
        raise unknown_expert(counts.numel() - 1, num_experts)
    loads, order = counts.sort(descending=True, stable=True)
    first_rows: list[int] = []
    stop = 0
    for block in cut(loads.tolist(), widest):
        first_rows.extend(range(block.start, block.span.stop, block.rows))
        stop = block.span.stop
    first_row = torch.zeros_like(counts)
    first_row[order[: len(first_rows)]] = torch.tensor(first_rows, dtype=counts.dtype, device=counts.device)
    narrow = chosen.to(torch.int16) if num_experts <= 2**15 else chosen  # radix sort: a pass for every byte of a key
    by_expert = narrow.argsort(stable=True)
    before = counts.cumsum(0) - counts
    row = torch.arange(chosen.numel(), device=chosen.device)
    row += (first_row - before).repeat_interleave(counts, output_size=chosen.numel())
    slot_of = torch.empty_like(chosen).index_copy_(0, by_expert, row).view_as(indices)
    token = chosen.new_zeros(stop)
    token.index_copy_(0, row, by_expert.div(indices.shape[1], rounding_mode="floor"))
    return Layout(loads, order, token, slot_of)


def unknown_expert(named: int, num_experts: int) -> ValueError:
    """What is raised where indices name an expert that there is not."""
    return ValueError(f"indices name expert {named}; there are {num_experts} experts, 0 to {num_experts - 1}")


def cut(loads: list[int], widest: int) -> list[Block]:
    """loads (E,), falling, of rows of at most ``widest`` elements -> blocks of a power of two of experts each; experts
    without tokens are in none.

    A block doubles as long as it has at most `BLOCK` elements, and its second half has at most `SPARED` elements of
    padding that it would not have as a block of its own.
    """
    active = len(loads) - loads.count(0)
    blocks: list[Block] = []
    first = 0
    start = 0
    while first < active:
        rows = rung(loads[first])
        size = 1
        while 2 * size * rows * widest <= BLOCK and first + 2 * size <= active:
            padding = size * (rows - rung(loads[first + size]))
            if padding * widest > SPARED:
                break
            size *= 2
        block = Block(slice(first, first + size), rows, start)
        blocks.append(block)
        first += size
        start = block.span.stop
    return blocks


def rung(load: int) -> int:
    """The padded rows of an expert with ``load`` tokens: the next of 16, 32, …, 128, 144, …, 256, 288, …"""
    step = max(SMALLEST, 2 ** ((load - 1).bit_length() - 1) // RUNGS)
    return -(-load // step) * step


def _swiglu_backward(d_hidden: Tensor, pre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d_hidden (size, H, rows) of the unscaled hidden state, overwritten; pre (size, 2H, rows); scale (size, 1, rows)
    -> d_pre, the scaled hidden state (size, H, rows), and the gradient of scale (size, rows).
    """
    gate, up = pre.chunk(2, dim=1)
    silu = F.silu(gate)
    hidden_state = silu * up
    d_scale = (d_hidden * hidden_state).sum(1, dtype=torch.promote_types(pre.dtype, torch.float32))
    d_hidden *= scale
    d_pre = torch.empty_like(pre)
    d_gate, d_up = d_pre.chunk(2, dim=1)
    torch.mul(d_hidden, silu, out=d_up)
    torch.ops.aten.silu_backward.grad_input(d_hidden.mul_(up), gate, grad_input=d_gate)
    return d_pre, hidden_state.mul_(scale), d_scale


def _combined(rows: Tensor, slot_of: Tensor, weights: Tensor | None = None) -> Tensor:
    """The (weighted) sum over each token's rows, kept in float32 at least: rows (R, D), slot_of (N, K) -> (N, D)."""
    if not slot_of.numel():
        return rows.new_zeros(slot_of.shape[0], rows.shape[1])
    return F.embedding_bag(slot_of, rows, mode="sum", per_sample_weights=weights)


def _at_slots(weights: Tensor, plan: Layout, dtype: torch.dtype) -> Tensor:
    """The weight of every padded row (R,), zero where the row is padding."""
    scale = weights.new_zeros(plan.token.numel(), dtype=dtype)
    return scale.index_copy_(0, plan.slot_of.reshape(-1), weights.reshape(-1).to(dtype))
