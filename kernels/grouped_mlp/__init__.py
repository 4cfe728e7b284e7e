"""Grouped SwiGLU MLP: the experts of a sparse mixture-of-experts layer in one differentiable operation.

Shazeer et al. 2017 (arXiv:1701.06538) for the layer, Gale et al. 2022 (arXiv:2211.15841) for computing it without
capacity limits. The routing decision and its weights come from outside; expert parallelism goes between the two.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import arithmetic_dtype, choose_few, choose_path, compute_dtype
from kernels.grouped_mlp import cpu, cuda, few, reference

FEW = {"gathered": few.gathered, "by_expert": few.by_expert}


def grouped_mlp(x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """y_n = Σ_k weights[n, k] · w_out[e] (silu(g) * u), with [g; u] = w_in[e] x_n and e = indices[n, k].

    x (N, D); w_in (E, 2H, D), gate rows first; w_out (E, D, H); indices (N, K) int64 in [0, E); weights (N, K) -> (N,
    D). Gradients for x, w_in, w_out and weights. Under autocast the products are in autocast's dtype, which is also
    the output's; the sum over k is in float32. A token may name an expert twice; an expert nobody names has a
    gradient of zeros. A CPU without bfloat16 products makes them in float32, and one that differentiates nothing makes
    those of few tokens in the matrices' own dtype (`grouped_mlp.few`). Raises ValueError when the shapes disagree.
    """
    _check(x, w_in, w_out, indices, weights)
    dtype = compute_dtype(x)
    path = choose_path("grouped_mlp", x)
    if path == "reference":
        return reference.grouped_mlp(x.to(dtype), w_in.to(dtype), w_out.to(dtype), indices, weights)
    if path == "triton":
        return cuda.grouped_mlp(x, w_in, w_out, indices, weights, dtype)
    if x.device.type == "cpu" and not _differentiated(x, w_in, w_out, weights):
        chosen = choose_few(indices.numel(), len(w_in), w_in[0].nbytes + w_out[0].nbytes, w_in.dtype)
        if chosen is not None:
            with torch.autocast("cpu", enabled=False):  # the dtype has been decided
                return FEW[chosen](x, w_in, w_out, indices, weights).to(dtype)
    arithmetic = arithmetic_dtype("grouped_mlp", dtype, x.device.type, path)
    y, *_ = _forward(x, w_in, w_out, indices, weights, arithmetic)
    return y.to(dtype)


@torch.library.custom_op("mm_kernels::grouped_mlp", mutates_args=())  # so that torch.compile takes it whole
def _forward(
    x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """-> y (N, D), and what is saved: the fields of `cpu.Saved` and of `cpu.Layout`, of R ≥ N K rows."""
    with torch.autocast(x.device.type, enabled=False):  # the dtype has been decided
        y, saved, plan = cpu.forward(x, w_in, w_out, indices, weights, dtype)
    return y, *saved, *plan


@torch.library.custom_op("mm_kernels::grouped_mlp_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, weights: Tensor, kept: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and weights in their own dtypes, of w_in and w_out in the compute dtype.

    kept: all but the first output of `_forward`.
    """
    with torch.autocast(x.device.type, enabled=False):
        return cpu.backward(grad, x, weights, cpu.Saved(*kept[:3]), cpu.Layout(*kept[3:]))


@_forward.register_fake
def _(
    x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = torch.library.get_ctx().new_dynamic_size()
    gate_up = x.new_empty(rows, w_in.shape[1], dtype=dtype)
    y, ordered_in, ordered_out = (tensor.new_empty(tensor.shape, dtype=dtype) for tensor in (x, w_in, w_out))
    loads, order = (indices.new_empty(len(w_in)) for _ in range(2))
    token = indices.new_empty(rows)
    slot_of = indices.new_empty(indices.shape)
    return y, gate_up, ordered_in, ordered_out, loads, order, token, slot_of


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weights: Tensor, kept: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, w_in, w_out, *_ = kept
    d_x, d_in, d_out, d_weights = (tensor.new_empty(tensor.shape) for tensor in (x, w_in, w_out, weights))
    return d_x, d_in, d_out, d_weights


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, w_in, _, _, weights, _ = inputs
    _, *kept = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weights, *kept)
    ctx.matrices_dtype = w_in.dtype


def _gradients(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple:
    if grad is None:
        return (None,) * 6
    x, weights, *kept = ctx.saved_tensors
    d_x, d_in, d_out, d_weights = _backward(grad, x, weights, kept)
    return d_x, d_in.to(ctx.matrices_dtype), d_out.to(ctx.matrices_dtype), None, d_weights, None


_forward.register_autograd(_gradients, setup_context=_save)


def _differentiated(*tensors: Tensor) -> bool:
    """Whether a backward pass may follow. A graph that is traced has to serve any number of tokens, and takes the path
    that does."""
    if torch.compiler.is_compiling():
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _check(x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor) -> None:
    num_experts, width, hidden = w_out.shape
    if w_in.shape != (num_experts, 2 * hidden, width):
        raise ValueError(
            f"w_in is {tuple(w_in.shape)}; with w_out {tuple(w_out.shape)} it must be (E, 2H, D) = "
            f"({num_experts}, {2 * hidden}, {width})"
        )
    if x.ndim != 2 or x.shape[1] != width:
        raise ValueError(f"x is {tuple(x.shape)}; it must be (N, D) with D = {width}, the experts' width")
    if indices.shape != weights.shape or indices.ndim != 2 or indices.shape[0] != x.shape[0]:
        raise ValueError(
            f"indices {tuple(indices.shape)} and weights {tuple(weights.shape)} must both be (N, K) with "
            f"N = {x.shape[0]}"
        )
