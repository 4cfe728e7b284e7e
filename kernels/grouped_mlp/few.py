"""Grouped MLP of few tokens, as a decoder writes them: reading the experts' matrices is all there is to do.

The limit is the bytes of the experts that are named over the bandwidth of memory, so that no matrix is copied that is
not small, nor cast: products are in the matrices' own dtype. Nothing is saved: there is no backward pass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.grouped_mlp.cpu import unknown_expert


def gathered(x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """x (N, D), w_in (E, 2H, D), w_out (E, D, H), indices (N, K), weights (N, K) -> y (N, D) in float32 at least.

    Matrices are copied, one for each assignment, and multiplied at once: few calls, for experts that are small.
    """
    tokens, choices = indices.shape
    chosen = _named(indices, len(w_in))
    rows = x.to(w_in.dtype).repeat_interleave(choices, 0)
    pre = torch.bmm(w_in.index_select(0, chosen), rows[:, :, None]).squeeze(2)
    hidden = _swiglu(pre, weights.flatten())
    out = torch.bmm(w_out.index_select(0, chosen), hidden[:, :, None]).view(tokens, choices, x.shape[1])
    return out.sum(1, dtype=torch.promote_types(out.dtype, torch.float32))


def by_expert(x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """The same by two products for each expert that is named, which read its matrices where they lie."""
    chosen = _named(indices, len(w_in))
    order = chosen.argsort(stable=True)
    bounds = _bounds(torch.bincount(chosen, minlength=len(w_in)).tolist())
    token = order.div(indices.shape[1], rounding_mode="floor")
    rows = x.to(w_in.dtype).index_select(0, token)
    pre = rows.new_empty(len(order), w_in.shape[1])
    for expert, part in bounds:
        torch.mm(rows[part], w_in[expert].T, out=pre[part])
    hidden = _swiglu(pre, weights.flatten().index_select(0, order))
    out = rows.new_empty(rows.shape)
    for expert, part in bounds:
        torch.mm(hidden[part], w_out[expert].T, out=out[part])
    wide = torch.promote_types(out.dtype, torch.float32)
    total = out.new_zeros(x.shape, dtype=wide)
    return total.index_add_(0, token, out.to(wide))


def _named(indices: Tensor, num_experts: int) -> Tensor:
    """indices (N, K) -> (N · K,). Raises ValueError where they name an expert that there is not."""
    chosen = indices.flatten()
    if chosen.numel() and int(chosen.max()) >= num_experts:
        raise unknown_expert(int(chosen.max()), num_experts)
    return chosen


def _bounds(loads: list[int]) -> list[tuple[int, slice]]:
    """Of every expert that has a load, in their order, its rows among all."""
    found = []
    start = 0
    for expert, load in enumerate(loads):
        if load:
            found.append((expert, slice(start, start + load)))
            start += load
    return found


def _swiglu(pre: Tensor, weights: Tensor) -> Tensor:
    """Pre-activations (R, 2H) of rows with weights (R,) -> weighted hidden states (R, H)."""
    gate, up = pre.chunk(2, 1)
    return F.silu(gate).mul_(up).mul_(weights[:, None].to(pre.dtype))
