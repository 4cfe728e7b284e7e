"""Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467).

On a GPU it is torch's own, one kernel. On a CPU torch takes it apart into some fifteen passes over the vectors, forward
and backward; here it is five, and two products with a vector. Its forward alone is as fast as ours, and on few vectors
faster.
"""

from typing import Any

import torch
from torch import Tensor, nn


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension: (..., D), weight (D,) -> (..., D) in x's dtype.

    eps: the smallest step of x's dtype where it is None. Gradients for x and weight.
    """
    trains = torch.is_grad_enabled() and (x.requires_grad or (weight is not None and weight.requires_grad))
    narrow = not x.is_floating_point() or x.dtype in (torch.float16, torch.bfloat16)
    if x.device.type != "cpu" or narrow or not trains:
        return nn.functional.rms_norm(x, x.shape[-1:], weight, eps)
    if eps is None:
        eps = torch.finfo(x.dtype).eps
    with torch.autocast("cpu", enabled=False):
        return _RMSNorm.apply(x, weight, eps)


class RMSNorm(nn.RMSNorm):
    """torch's module, with `rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return rms_norm(x, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        y = x * inverse
        return y if weight is None else y.mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        along = grad * x
        d_weight = None
        if weight is None:
            inner = along.sum(-1, keepdim=True)
        else:
            inner = (along @ weight)[..., None]
            d_weight = inverse.flatten() @ along.flatten(0, -2)
            grad = grad * weight
        # d_x = inverse · grad - inverse³ / D · (grad · x) x
        factor = inner.mul_(inverse.pow(3)).div_(-x.shape[-1])
        return torch.mul(x, factor, out=along).addcmul_(grad, inverse), d_weight, None
