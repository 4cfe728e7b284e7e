"""The tile-wise passes of both losses as custom operators, so that torch.compile takes them whole; ``path`` says
which module.

Letters: n rows of this rank, B columns of the whole batch; ``first`` is the column of row 0's positive. ids are (n,)
and (B,).
"""

import importlib
from types import ModuleType

import torch
from torch import Tensor

Ids = Tensor | None


@torch.library.custom_op("mm_kernels::info_nce", mutates_args=())
def nce_forward(
    a: Tensor, b: Tensor, scale: Tensor, row_ids: Ids, ids: Ids, first: int, path: str
) -> tuple[Tensor, Tensor]:
    """a (n, D), b (B, D), scale () -> log-sum-exp of the rows (n,), and of the columns over these rows (B,)."""
    with torch.autocast(a.device.type, enabled=False):
        return _module(path).nce_forward(a, b, scale, row_ids, ids, first)


@torch.library.custom_op("mm_kernels::info_nce_backward", mutates_args=())
def nce_backward(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    rows: Tensor,
    columns: Tensor,
    row_ids: Ids,
    ids: Ids,
    first: int,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of Σ_i (rows_i + columns_i) / 2 - logit_ii for a (n, D), b (B, D; these rows' share) and scale ()."""
    with torch.autocast(a.device.type, enabled=False):
        return _module(path).nce_backward(a, b, scale, rows, columns, row_ids, ids, first)


@torch.library.custom_op("mm_kernels::sigmoid_loss", mutates_args=())
def sigmoid_forward(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, row_ids: Ids, ids: Ids, first: int, path: str
) -> Tensor:
    """The sum over these rows of the pairs' losses: a (n, D), b (B, D), scale (), bias () -> ()."""
    with torch.autocast(a.device.type, enabled=False):
        return _module(path).sigmoid_forward(a, b, scale, bias, row_ids, ids, first)


@torch.library.custom_op("mm_kernels::sigmoid_loss_backward", mutates_args=())
def sigmoid_backward(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, row_ids: Ids, ids: Ids, first: int, path: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of that sum for a (n, D), b (B, D; these rows' share), scale () and bias ()."""
    with torch.autocast(a.device.type, enabled=False):
        return _module(path).sigmoid_backward(a, b, scale, bias, row_ids, ids, first)


@nce_forward.register_fake
def _(a: Tensor, b: Tensor, scale: Tensor, row_ids: Ids, ids: Ids, first: int, path: str) -> tuple[Tensor, ...]:
    return _like(a.new_empty(a.shape[0]), scale), _like(b.new_empty(b.shape[0]), scale)


@nce_backward.register_fake
def _(
    a: Tensor, b: Tensor, scale: Tensor, rows: Tensor, columns: Tensor, row_ids: Ids, ids: Ids, first: int, path: str
) -> tuple[Tensor, ...]:
    return _like(a, scale), _like(b, scale), torch.empty_like(scale)


@sigmoid_forward.register_fake
def _(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, row_ids: Ids, ids: Ids, first: int, path: str) -> Tensor:
    return torch.empty_like(scale)


@sigmoid_backward.register_fake
def _(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, row_ids: Ids, ids: Ids, first: int, path: str
) -> tuple[Tensor, ...]:
    return _like(a, scale), _like(b, scale), torch.empty_like(scale), torch.empty_like(bias)


def _like(tensor: Tensor, scale: Tensor) -> Tensor:
    """Everything is returned in scale's dtype, float32 at least, which narrow a and b may not have."""
    return tensor.new_empty(tensor.shape, dtype=scale.dtype)


def _module(path: str) -> ModuleType:
    name = "triton_kernel" if path == "triton" else "cpu"
    return importlib.import_module(f"kernels.info_nce.{name}")
