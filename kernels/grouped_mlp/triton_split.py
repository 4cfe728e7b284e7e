"""Grouped MLP on CUDA for wide experts, in two halves that each save what they need: the first product, and the rest.

Two nodes of the autograd graph instead of one: once the second half's backward has made the gradient of the
pre-activations, they themselves are released, before the first half's backward asks for as much again.
"""

import torch
from torch import Tensor

from kernels.grouped_mlp.layout import Layout
from kernels.grouped_mlp.triton_glue import combine, spread, swiglu, swiglu_backward
from kernels.grouped_mlp.triton_products import per_expert, weight_gradient

GATHERED = 2**28
"""Bytes of tokens that are gathered at a time for the gradient of the first matrices."""


def up(x: Tensor, w_in: Tensor, plan: Layout, library: bool) -> Tensor:
    """x (N, D), w_in (E, 2H, D) -> pre-activations (R, 2H)."""
    if library:
        return torch._grouped_mm(spread(x, plan), w_in.mT, offs=plan.ends)
    return per_expert(x, w_in, plan, gather=True)


def up_backward(d_gate_up: Tensor, x: Tensor, w_in: Tensor, plan: Layout, library: bool) -> tuple[Tensor, Tensor]:
    """d_gate_up (R, 2H) -> gradients of x and w_in."""
    if not library:
        d_x = combine(per_expert(d_gate_up, w_in.mT, plan, gather=False), plan)
        return d_x, weight_gradient(d_gate_up, x, plan, w_in.dtype, gather="right")
    d_x = combine(torch._grouped_mm(d_gate_up, w_in, offs=plan.ends), plan)
    width = x.shape[1]
    columns = columns_at_once(d_gate_up)
    if width <= columns:
        return d_x, torch._grouped_mm(d_gate_up.mT, spread(x, plan), offs=plan.ends)
    d_in = torch.empty_like(w_in)
    for left in range(0, width, columns):
        part = torch._grouped_mm(d_gate_up.mT, spread(x[:, left : left + columns], plan), offs=plan.ends)
        fours = slice(
            left // 4, (left + columns) // 4
        )  # eight bytes at a time: torch copies strided pairs half as fast
        d_in.view(torch.int64)[:, :, fours] = part.view(torch.int64)
    return d_x, d_in


def columns_at_once(rows: Tensor) -> int:
    """How many columns of the tokens of (R, ·) are gathered at a time: a multiple of what the products need."""
    return max(256, GATHERED // (rows.shape[0] * rows.element_size()) // 64 * 64)


def down(gate_up: Tensor, w_out: Tensor, weights: Tensor, plan: Layout, library: bool) -> Tensor:
    """gate_up (R, 2H), w_out (E, D, H), weights (N, K) -> y (N, D)."""
    hidden_state = swiglu(gate_up, plan)
    if library:
        rows = torch._grouped_mm(hidden_state, w_out.mT, offs=plan.ends)
    else:
        rows = per_expert(hidden_state, w_out, plan, gather=False)
    return combine(rows, plan, weights)


def down_backward(
    grad: Tensor, gate_up: Tensor, w_out: Tensor, weights: Tensor, plan: Layout, library: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """grad (N, D) -> gradients of gate_up, w_out and weights.

    The hidden state is made, used and released before its gradient is: at most one of them is held beside the rows.
    """
    if library:
        rows = spread(grad, plan)
        d_out = torch._grouped_mm(rows.mT, swiglu(gate_up, plan, weights), offs=plan.ends)
        d_hidden = torch._grouped_mm(rows, w_out, offs=plan.ends)
        del rows
    else:
        d_out = weight_gradient(grad, swiglu(gate_up, plan, weights), plan, w_out.dtype, gather="left")
        d_hidden = per_expert(grad, w_out.mT, plan, gather=True)
    d_gate_up, d_weights = swiglu_backward(d_hidden, gate_up, weights, plan)
    return d_gate_up, d_out, d_weights
