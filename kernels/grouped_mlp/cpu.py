"""Grouped MLP in plain torch: assignments sorted by expert, experts of like load padded into batched products.

Routing changes from step to step, and with it the shapes of the products; oneDNN compiles a kernel for every shape it
has not seen, which costs more than a small product itself. Loads are therefore rounded up to a coarse ladder and
experts of one rung are batched in powers of two: few shapes, met again and again. A block's activations stay in the
cache from gather to down-projection. Saved for the backward pass: the inputs and the (gate, up) pre-activations in the
compute dtype; everything else is cheap and recomputed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**19
"""Elements of a block's widest activation: 2 MB in float32, within the cores' own caches."""
RUNGS = 4
"""Steps of the ladder of padded loads per doubling: on average a tenth of the rows is padding."""
SMALLEST = 8
"""Rows of the lowest rung."""


@dataclass(frozen=True)
class Block:
    """Experts that are computed together: ``size`` experts of the load order from ``first``, ``rows`` padded rows
    each.
    """

    first: int
    size: int
    rows: int
    start: int  # of the block's rows among all padded rows

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + self.size * self.rows)

    @property
    def experts(self) -> slice:
        return slice(self.first, self.first + self.size)


def forward(
    x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """-> y (N, D) and the pre-activations (padded rows, 2H) that `backward` needs, both in ``dtype``.

    Inside a block, hidden channels come before rows, (size, 2H, rows): what is elementwise then runs over long
    contiguous stretches however narrow the experts are.
    """
    order, blocks, token, slot_of = layout(indices, w_in.shape[0], BLOCK // max(w_in.shape[1:]))
    rows = token.numel()
    hidden = w_out.shape[2]
    scale = _at_slots(weights, slot_of, rows, dtype)
    x = x.to(dtype)
    gate_up = x.new_empty(rows, 2 * hidden)
    out = _Combined(x, token, slot_of)
    for block in blocks:
        span = block.span
        experts = order[block.experts]
        gathered = x.index_select(0, token[span]).view(block.size, block.rows, -1)
        pre = gate_up[span].view(block.size, 2 * hidden, block.rows)
        torch.bmm(_weights(w_in, experts, dtype), gathered.mT, out=pre)
        gate, up = pre.chunk(2, dim=1)
        block_scale = scale[span].view(block.size, 1, -1)
        hidden_state = F.silu(gate).mul_(up).mul_(block_scale)
        out.add(block, hidden_state.mT, _weights(w_out, experts, dtype).mT)
    return out.result(), gate_up


def backward(
    grad: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w_in, w_out, weights in their own dtypes."""
    dtype = gate_up.dtype
    order, blocks, token, slot_of = layout(indices, w_in.shape[0], BLOCK // max(w_in.shape[1:]))
    rows = token.numel()
    hidden = w_out.shape[2]
    scale = _at_slots(weights, slot_of, rows, dtype)
    cast = x.to(dtype)
    grad = grad.to(dtype).contiguous()
    d_x = _Combined(cast, token, slot_of)
    d_scale = x.new_empty(rows, dtype=torch.promote_types(dtype, torch.float32))
    d_in = w_in.new_empty(w_in.shape)
    d_out = w_out.new_empty(w_out.shape)
    for block in blocks:
        span = block.span
        experts = order[block.experts]
        d_y = grad.index_select(0, token[span]).view(block.size, block.rows, -1)
        d_hidden = torch.bmm(_weights(w_out, experts, dtype).mT, d_y.mT)
        pre = gate_up[span].view(block.size, 2 * hidden, block.rows)
        block_scale = scale[span].view(block.size, 1, -1)
        d_pre, hidden_state, d_weight = _swiglu_backward(d_hidden, pre, block_scale)
        d_scale[span] = d_weight.flatten()
        d_out.index_copy_(0, experts, torch.bmm(d_y.mT, hidden_state.mT).to(d_out.dtype))
        d_x.add(block, d_pre.mT, _weights(w_in, experts, dtype))
        gathered = cast.index_select(0, token[span]).view(block.size, block.rows, -1)
        d_in.index_copy_(0, experts, torch.bmm(d_pre, gathered).to(d_in.dtype))
    idle = order[sum(block.size for block in blocks) :]
    d_in.index_fill_(0, idle, 0)
    d_out.index_fill_(0, idle, 0)
    return d_x.result().to(x.dtype), d_in, d_out, d_scale[slot_of].to(weights.dtype)


class _Combined:
    """The sum over each token's rows of a product, in float32 at least: (N, D).

    Wide dtypes are added block by block while the product is in the cache. Narrow ones would first have to be
    widened; their rows are kept and summed in one pass, which `embedding_bag` does in float32.
    """

    def __init__(self, x: Tensor, token: Tensor, slot_of: Tensor) -> None:
        self.token = token
        self.slot_of = slot_of
        self.narrow = x.dtype.itemsize < 4 and slot_of.numel() > 0
        self.space = x.new_empty(token.numel(), x.shape[1]) if self.narrow else torch.zeros_like(x)

    def add(self, block: "Block", left: Tensor, right: Tensor) -> None:
        """Batched product (size, rows, ·) @ (size, ·, D) of one block."""
        if self.narrow:
            torch.bmm(left, right, out=self.space[block.span].view(block.size, block.rows, -1))
        else:
            product = torch.bmm(left, right).flatten(0, 1)
            self.space.index_add_(0, self.token[block.span], product)

    def result(self) -> Tensor:
        if self.narrow:
            return F.embedding_bag(self.slot_of, self.space, mode="sum")
        return self.space


def layout(indices: Tensor, num_experts: int, rows_per_block: int) -> tuple[Tensor, list[Block], Tensor, Tensor]:
    """Where every assignment is computed.

    indices (N, K) -> the experts by falling load (E,), the blocks, the token of every padded row (R,), and the row of
    every assignment (N, K). A padding row repeats token 0 with weight 0.
    """
    chosen = indices.reshape(-1)
    counts = torch.bincount(chosen, minlength=num_experts)
    if counts.numel() != num_experts:
        raise ValueError(
            f"indices name expert {counts.numel() - 1}; there are {num_experts} experts, 0 to {num_experts - 1}"
        )
    order = counts.argsort(descending=True, stable=True)
    blocks = cut(counts[order].tolist(), rows_per_block)
    device = indices.device
    first_row = counts.new_zeros(num_experts)
    for block in blocks:
        steps = torch.arange(block.size, device=device)
        first_row[order[block.experts]] = block.start + steps * block.rows
    by_expert = chosen.argsort(stable=True)
    before = counts.cumsum(0) - counts
    rank = torch.arange(chosen.numel(), device=device) - before.repeat_interleave(counts)
    row = first_row.repeat_interleave(counts) + rank
    slot_of = torch.empty_like(chosen).scatter_(0, by_expert, row).view_as(indices)
    token = chosen.new_zeros(blocks[-1].span.stop if blocks else 0)
    token[row] = by_expert // indices.shape[1]
    return order, blocks, token, slot_of


def cut(loads: list[int], rows_per_block: int) -> list[Block]:
    """Blocks of neighbouring experts in falling order of load; experts without tokens are in none.

    A block has at most ``rows_per_block`` rows, unless it is a single expert.
    """
    blocks: list[Block] = []
    rungs = [rung(load) for load in loads if load > 0]
    first = 0
    start = 0
    while first < len(rungs):
        rows = rungs[first]
        size = 1
        while 2 * size * rows <= rows_per_block and rungs[first + size : first + 2 * size] == [rows] * size:
            size *= 2
        block = Block(first, size, rows, start)
        blocks.append(block)
        first += size
        start = block.span.stop
    return blocks


def rung(load: int) -> int:
    """The padded rows of an expert with ``load`` tokens: the next of 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, …"""
    step = max(SMALLEST, 2 ** ((load - 1).bit_length() - 1) // RUNGS)
    return -(-load // step) * step


def _swiglu_backward(d_hidden: Tensor, pre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d_hidden (size, H, rows), pre (size, 2H, rows), scale (size, 1, rows) -> d_pre, the scaled hidden state
    (size, H, rows), and the gradient of scale (size, rows).
    """
    gate, up = pre.chunk(2, dim=1)
    hidden_state = F.silu(gate)
    d_pre = torch.empty_like(pre)
    d_gate, d_up = d_pre.chunk(2, dim=1)
    torch.mul(d_hidden, hidden_state, out=d_up)
    d_scale = (d_up * up).sum(1, dtype=torch.promote_types(pre.dtype, torch.float32))
    d_up.mul_(scale)
    d_silu = d_hidden.mul_(scale).mul_(up)
    d_gate.copy_(torch.ops.aten.silu_backward(d_silu, gate))
    return d_pre, hidden_state.mul_(up).mul_(scale), d_scale


def _weights(stack: Tensor, experts: Tensor, dtype: torch.dtype) -> Tensor:
    """The block's expert matrices in the compute dtype; a copy of cache size instead of one of the whole stack."""
    return stack.index_select(0, experts).to(dtype)


def _at_slots(weights: Tensor, slot_of: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """The weight of every padded row (R,), zero where the row is padding."""
    scale = weights.new_zeros(rows, dtype=dtype)
    return scale.index_copy_(0, slot_of.reshape(-1), weights.reshape(-1).to(dtype))
