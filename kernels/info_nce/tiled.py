"""The tile-wise passes of both losses as custom operators, so that torch.compile takes them whole; ``path`` says
which module, ``grad`` () and ``weight`` multiply gradients, the other arguments are those of `Pairs`.
"""

import importlib
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from kernels.info_nce.pairs import Pairs
from kernels.operator import Operator

Ids = Tensor | None


@partial(Operator, "mm_kernels::info_nce")
def nce_forward(
    a: Tensor, b: Tensor, scale: Tensor, row_ids: Ids, ids: Ids, first: int, dtype: torch.dtype, path: str
) -> tuple[Tensor, Tensor, Tensor]:
    """-> log-sum-exp of the rows (n,) and of the columns over these rows (B,), and the positives' logits (n,)."""
    with torch.autocast(a.device.type, enabled=False):
        return _module(path).nce_forward(Pairs(a, b, scale, row_ids, ids, first, dtype))


@partial(Operator, "mm_kernels::info_nce_backward")
def nce_backward(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    rows: Tensor,
    columns: Tensor,
    grad: Tensor,
    weight: float,
    row_ids: Ids,
    ids: Ids,
    first: int,
    dtype: torch.dtype,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of Σ_i (rows_i + columns_i) / 2 - logit_ii for a (n, D), b (B, D; these rows' share) and scale ()."""
    with torch.autocast(a.device.type, enabled=False):
        pairs = Pairs(a, b, scale, row_ids, ids, first, dtype)
        return _module(path).nce_backward(pairs, rows, columns, grad, weight)


@partial(Operator, "mm_kernels::sigmoid_loss")
def sigmoid_forward(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_ids: Ids,
    ids: Ids,
    first: int,
    dtype: torch.dtype,
    path: str,
) -> Tensor:
    """The sum over these rows of the pairs' losses ()."""
    with torch.autocast(a.device.type, enabled=False):
        return _module(path).sigmoid_forward(Pairs(a, b, scale, row_ids, ids, first, dtype), bias)


@partial(Operator, "mm_kernels::sigmoid_loss_backward")
def sigmoid_backward(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    bias: Tensor,
    grad: Tensor,
    weight: float,
    row_ids: Ids,
    ids: Ids,
    first: int,
    dtype: torch.dtype,
    path: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of that sum for a (n, D), b (B, D; these rows' share), scale () and bias ()."""
    with torch.autocast(a.device.type, enabled=False):
        pairs = Pairs(a, b, scale, row_ids, ids, first, dtype)
        return _module(path).sigmoid_backward(pairs, bias, grad, weight)


@nce_forward.register_fake
def _(a: Tensor, b: Tensor, scale: Tensor, *others: object) -> tuple[Tensor, ...]:
    return scale.new_empty(a.shape[0]), scale.new_empty(b.shape[0]), scale.new_empty(a.shape[0])


@nce_backward.register_fake
def _(a: Tensor, b: Tensor, scale: Tensor, *others: object) -> tuple[Tensor, ...]:
    return scale.new_empty(a.shape), scale.new_empty(b.shape), torch.empty_like(scale)


@sigmoid_forward.register_fake
def _(a: Tensor, b: Tensor, scale: Tensor, *others: object) -> Tensor:
    return torch.empty_like(scale)


@sigmoid_backward.register_fake
def _(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, *others: object) -> tuple[Tensor, ...]:
    return scale.new_empty(a.shape), scale.new_empty(b.shape), torch.empty_like(scale), torch.empty_like(bias)


def _module(path: str) -> ModuleType:
    name = "triton_kernel" if path == "triton" else "cpu"
    return importlib.import_module(f"kernels.info_nce.{name}")
