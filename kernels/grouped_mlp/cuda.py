"""Grouped MLP on CUDA as operations that torch.compile takes whole: forward, backward, and shapes without either.

Triton is imported where an operation runs. No operation waits for the host, and no shape depends on the routing:
forward and backward may be captured in a CUDA graph.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import choose_products
from kernels.grouped_mlp.layout import Layout


def grouped_mlp(x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """As `kernels.grouped_mlp`, with products and result in ``dtype``."""
    indices = indices.contiguous()
    weights = weights.contiguous()
    products = choose_products(x.device, dtype, *w_out.shape[1:])
    if products == "fused":
        contiguous = (tensor.contiguous() for tensor in (x, w_in, w_out))
        return fused(*contiguous, indices, weights, dtype)[0]
    library = products == "library" and indices.numel() > 0  # which refuses matrices of no rows
    x, w_in, w_out = (tensor.to(dtype).contiguous() for tensor in (x, w_in, w_out))
    plan = layout(indices, w_in.shape[0])
    return down(up(x, w_in, *plan, library), w_out, weights, *plan, library)


@torch.library.custom_op("mm_kernels::grouped_mlp_layout", mutates_args=())
def layout(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """-> the fields of Layout."""
    from kernels.grouped_mlp.triton_layout import layout

    return layout(indices, num_experts)


@layout.register_fake
def _(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    return _layout_like(indices, num_experts)


@torch.library.custom_op("mm_kernels::grouped_mlp_fused", mutates_args=())
def fused(
    x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """-> y (N, D), pre-activations (N K, 2H), and the layout."""
    from kernels.grouped_mlp import triton_fused
    from kernels.grouped_mlp.triton_layout import layout

    plan = layout(indices, w_in.shape[0])
    return *triton_fused.forward(x, w_in, w_out, weights, plan, dtype), *plan


@torch.library.custom_op("mm_kernels::grouped_mlp_fused_backward", mutates_args=())
def fused_backward(
    grad: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor, weights: Tensor, gate_up: Tensor, plan: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w_in, w_out, weights in their own dtypes."""
    from kernels.grouped_mlp import triton_fused

    return triton_fused.backward(grad.contiguous(), x, w_in, w_out, weights, gate_up, Layout(*plan))


@fused.register_fake
def _(
    x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gate_up = x.new_empty((indices.numel(), w_in.shape[1]), dtype=dtype)
    return torch.empty_like(x, dtype=dtype), gate_up, *_layout_like(indices, w_in.shape[0])


@fused_backward.register_fake
def _(
    grad: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor, weights: Tensor, gate_up: Tensor, plan: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_x, d_in, d_out, d_weights = (torch.empty_like(tensor) for tensor in (x, w_in, w_out, weights))
    return d_x, d_in, d_out, d_weights


def _save_fused(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, w_in, w_out, _, weights, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, w_in, w_out, weights, *output[1:])


def _fused_gradients(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    *tensors, order, slot_of, ends = ctx.saved_tensors
    d_x, d_in, d_out, d_weights = fused_backward(grad, *tensors, [order, slot_of, ends])
    return d_x, d_in, d_out, None, d_weights, None


fused.register_autograd(_fused_gradients, setup_context=_save_fused)


@torch.library.custom_op("mm_kernels::grouped_mlp_up", mutates_args=())
def up(x: Tensor, w_in: Tensor, order: Tensor, slot_of: Tensor, ends: Tensor, library: bool) -> Tensor:
    """-> pre-activations (N K, 2H)."""
    from kernels.grouped_mlp import triton_split

    return triton_split.up(x, w_in, Layout(order, slot_of, ends), library)


@torch.library.custom_op("mm_kernels::grouped_mlp_up_backward", mutates_args=())
def up_backward(grad: Tensor, x: Tensor, w_in: Tensor, plan: list[Tensor], library: bool) -> tuple[Tensor, Tensor]:
    """Gradients of x and w_in."""
    from kernels.grouped_mlp import triton_split

    return triton_split.up_backward(grad.contiguous(), x, w_in, Layout(*plan), library)


@up.register_fake
def _(x: Tensor, w_in: Tensor, order: Tensor, slot_of: Tensor, ends: Tensor, library: bool) -> Tensor:
    return x.new_empty(order.shape[0], w_in.shape[1])


@up_backward.register_fake
def _(grad: Tensor, x: Tensor, w_in: Tensor, plan: list[Tensor], library: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(w_in)


def _save_up(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.library = inputs
    ctx.save_for_backward(*tensors)


def _up_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, w_in, *plan = ctx.saved_tensors
    return *up_backward(grad, x, w_in, plan, ctx.library), None, None, None, None


up.register_autograd(_up_gradients, setup_context=_save_up)


@torch.library.custom_op("mm_kernels::grouped_mlp_down", mutates_args=())
def down(
    gate_up: Tensor, w_out: Tensor, weights: Tensor, order: Tensor, slot_of: Tensor, ends: Tensor, library: bool
) -> Tensor:
    """-> y (N, D)."""
    from kernels.grouped_mlp import triton_split

    return triton_split.down(gate_up, w_out, weights, Layout(order, slot_of, ends), library)


@torch.library.custom_op("mm_kernels::grouped_mlp_down_backward", mutates_args=())
def down_backward(
    grad: Tensor, gate_up: Tensor, w_out: Tensor, weights: Tensor, plan: list[Tensor], library: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate_up, w_out and weights."""
    from kernels.grouped_mlp import triton_split

    return triton_split.down_backward(grad.contiguous(), gate_up, w_out, weights, Layout(*plan), library)


@down.register_fake
def _(
    gate_up: Tensor, w_out: Tensor, weights: Tensor, order: Tensor, slot_of: Tensor, ends: Tensor, library: bool
) -> Tensor:
    return gate_up.new_empty(slot_of.shape[0], w_out.shape[1])


@down_backward.register_fake
def _(
    grad: Tensor, gate_up: Tensor, w_out: Tensor, weights: Tensor, plan: list[Tensor], library: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(gate_up), torch.empty_like(w_out), torch.empty_like(weights)


def _save_down(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.library = inputs
    ctx.save_for_backward(*tensors)


def _down_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gate_up, w_out, weights, *plan = ctx.saved_tensors
    return *down_backward(grad, gate_up, w_out, weights, plan, ctx.library), None, None, None, None


down.register_autograd(_down_gradients, setup_context=_save_down)


def _layout_like(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    count = indices.numel()
    order, slot_of, ends = (
        indices.new_empty(shape, dtype=torch.int32) for shape in (count, indices.shape, num_experts)
    )
    return order, slot_of, ends
