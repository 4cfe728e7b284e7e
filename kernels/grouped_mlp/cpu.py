"""Grouped MLP in plain torch: assignments sorted by expert, experts of like load padded into batched products.

Routing changes from step to step, and with it the shapes of the products; oneDNN compiles a kernel for every shape it
has not seen, which costs ten times a small product itself. Loads are therefore rounded up to a coarse ladder, and a
block takes as many experts as its rung allows, the lighter ones padded: few shapes, met again and again. What is wide
is touched once: expert matrices are gathered and cast in one pass, gradients cast and scattered in one pass, and the
routing weights ride on the sum over each token's rows. Saved for the backward pass: the inputs and the (gate, up)
pre-activations in the compute dtype; everything else is cheap and recomputed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**20
"""Elements of a block's widest activation: a block's calls cost less than its arithmetic, and its tensors stay near."""
RUNGS = 8
"""Steps of the ladder of padded loads per doubling."""
SMALLEST = 16
"""Rows of the lowest rung: what a matrix unit multiplies at once."""


@dataclass(frozen=True)
class Block:
    """Experts that are computed together, heaviest first, in ``rows`` rows each; what a load does not fill is
    padding.
    """

    experts: list[int]
    rows: int
    start: int  # of the block's rows among all padded rows

    @property
    def size(self) -> int:
        return len(self.experts)

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + self.size * self.rows)


@dataclass(frozen=True)
class Layout:
    """Where every assignment is computed. A padding row repeats token 0, and nobody reads its result."""

    blocks: list[Block]
    idle: list[int]  # experts without tokens
    token: Tensor  # (R,) of every padded row
    slot_of: Tensor  # (N, K) the row of every assignment


def forward(
    x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """-> y (N, D) and the pre-activations (padded rows, 2H) that `backward` needs, both in ``dtype``.

    Inside a block, hidden channels come before rows, (size, 2H, rows): what is elementwise then runs over long
    contiguous stretches however narrow the experts are.
    """
    plan = layout(indices, w_in.shape[0], BLOCK // max(w_in.shape[1:]))
    width, hidden = w_out.shape[1:]
    x = x.to(dtype)
    gate_up = x.new_empty(plan.token.numel(), 2 * hidden)
    out = x.new_empty(plan.token.numel(), width)
    matrices_in = w_in.unbind()
    matrices_out = w_out.unbind()
    for block in plan.blocks:
        gathered = x.index_select(0, plan.token[block.span]).view(block.size, block.rows, width)
        pre = gate_up[block.span].view(block.size, 2 * hidden, block.rows)
        torch.bmm(_stacked(matrices_in, block, dtype), gathered.mT, out=pre)
        gate, up = pre.chunk(2, dim=1)
        hidden_state = F.silu(gate).mul_(up)
        rows = out[block.span].view(block.size, block.rows, width)
        torch.bmm(hidden_state.mT, _stacked(matrices_out, block, dtype).mT, out=rows)
    return _combined(out, plan.slot_of, weights.to(dtype)), gate_up


def backward(
    grad: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w_in, w_out, weights in their own dtypes."""
    dtype = gate_up.dtype
    plan = layout(indices, w_in.shape[0], BLOCK // max(w_in.shape[1:]))
    width, hidden = w_out.shape[1:]
    scale = _at_slots(weights, plan, dtype)
    cast = x.to(dtype)
    grad = grad.to(dtype)
    d_x = cast.new_empty(plan.token.numel(), width)
    d_scale = x.new_empty(plan.token.numel(), dtype=torch.promote_types(dtype, torch.float32))
    matrices_in = w_in.unbind()
    matrices_out = w_out.unbind()
    d_in = w_in.new_empty(w_in.shape)
    d_out = w_out.new_empty(w_out.shape)
    into_in = d_in.unbind()
    into_out = d_out.unbind()
    for block in plan.blocks:
        token = plan.token[block.span]
        d_y = grad.index_select(0, token).view(block.size, block.rows, width)
        d_hidden = torch.bmm(_stacked(matrices_out, block, dtype).mT, d_y.mT)
        pre = gate_up[block.span].view(block.size, 2 * hidden, block.rows)
        block_scale = scale[block.span].view(block.size, 1, block.rows)
        d_pre, hidden_state, d_weight = _swiglu_backward(d_hidden, pre, block_scale)
        d_scale[block.span] = d_weight.flatten()
        _scatter(torch.bmm(d_y.mT, hidden_state.mT), into_out, block)
        rows = d_x[block.span].view(block.size, block.rows, width)
        torch.bmm(d_pre.mT, _stacked(matrices_in, block, dtype), out=rows)
        gathered = cast.index_select(0, token).view(block.size, block.rows, width)
        _scatter(torch.bmm(d_pre, gathered), into_in, block)
    for expert in plan.idle:
        into_in[expert].zero_()
        into_out[expert].zero_()
    return _combined(d_x, plan.slot_of).to(x.dtype), d_in, d_out, d_scale[plan.slot_of].to(weights.dtype)


def layout(indices: Tensor, num_experts: int, rows_per_block: int) -> Layout:
    """indices (N, K) -> Layout of blocks with at most ``rows_per_block`` rows, unless one is a single expert."""
    chosen = indices.reshape(-1)
    device = chosen.device
    counts = torch.bincount(chosen, minlength=num_experts)
    if counts.numel() != num_experts:
        raise ValueError(
            f"indices name expert {counts.numel() - 1}; there are {num_experts} experts, 0 to {num_experts - 1}"
        )
    loads = counts.tolist()
    blocks = cut(loads, rows_per_block)
    first_row = [0] * num_experts
    for block in blocks:
        for position, expert in enumerate(block.experts):
            first_row[expert] = block.start + position * block.rows
    narrow = chosen.to(torch.int16) if num_experts <= 2**15 else chosen  # radix sort: a pass for every byte of a key
    by_expert = narrow.argsort(stable=True)
    before = counts.cumsum(0) - counts
    shift = torch.tensor(first_row, device=device) - before
    row = torch.arange(chosen.numel(), device=device)
    row += shift.repeat_interleave(counts, output_size=chosen.numel())
    slot_of = torch.empty_like(chosen).index_copy_(0, by_expert, row).view_as(indices)
    token = chosen.new_zeros(blocks[-1].span.stop if blocks else 0)
    token.index_copy_(0, row, by_expert.div(indices.shape[1], rounding_mode="floor"))
    idle = [expert for expert, load in enumerate(loads) if load == 0]
    return Layout(blocks, idle, token, slot_of)


def cut(loads: list[int], rows_per_block: int) -> list[Block]:
    """loads (E,) -> blocks of a power of two of experts in falling order of load; experts without tokens are in none.

    A block doubles as long as it has at most ``rows_per_block`` rows and none of its experts more padding than load.
    """
    order = sorted(range(len(loads)), key=lambda expert: -loads[expert])
    falling = [loads[expert] for expert in order if loads[expert] > 0]
    blocks: list[Block] = []
    first = 0
    start = 0
    while first < len(falling):
        rows = rung(falling[first])
        size = 1
        while 2 * size * rows <= rows_per_block and first + 2 * size <= len(falling):
            lightest = falling[first + 2 * size - 1]
            if rows > max(2 * lightest, SMALLEST):
                break
            size *= 2
        block = Block(order[first : first + size], rows, start)
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


def _stacked(matrices: Sequence[Tensor], block: Block, dtype: torch.dtype) -> Tensor:
    """The block's expert matrices in the compute dtype, (size, ·, ·)."""
    stack = matrices[0].new_empty(block.size, *matrices[0].shape, dtype=dtype)
    torch._foreach_copy_(stack.unbind(), [matrices[expert] for expert in block.experts])
    return stack


def _scatter(gradients: Tensor, into: Sequence[Tensor], block: Block) -> None:
    """The inverse of `_stacked`: (size, ·, ·) into the matrices of the block's experts, in their dtype."""
    torch._foreach_copy_([into[expert] for expert in block.experts], gradients.unbind())


def _combined(rows: Tensor, slot_of: Tensor, weights: Tensor | None = None) -> Tensor:
    """The (weighted) sum over each token's rows, kept in float32 at least: rows (R, D), slot_of (N, K) -> (N, D)."""
    if not slot_of.numel():
        return rows.new_zeros(slot_of.shape[0], rows.shape[1])
    return F.embedding_bag(slot_of, rows, mode="sum", per_sample_weights=weights)


def _at_slots(weights: Tensor, plan: Layout, dtype: torch.dtype) -> Tensor:
    """The weight of every padded row (R,), zero where the row is padding."""
    scale = weights.new_zeros(plan.token.numel(), dtype=dtype)
    return scale.index_copy_(0, plan.slot_of.reshape(-1), weights.reshape(-1).to(dtype))
