"""Where the gradients of two groups of terms meet: in what both of them read, they are added, kept apart, balanced or
projected.

A fork stands at the border of what is shared. All that the second group teaches it passes there, as the gradient of a
representation instead of weights (Sener & Koltun 2018, "Multi-Task Learning as Multi-Objective Optimization", section
3.3): one backward is enough, and nothing is asked of the host.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from kernels.collectives import Group, step_group, sum_over_ranks

Merge = Literal["sum", "apart", "balanced", "projected"]
"""sum: both are added. apart: the second one stops. balanced: the second is no longer than the first. projected: where
they conflict each loses what lies along the other (PCGrad, Yu et al. 2020)."""


def fork(x: Tensor, merge: Merge) -> tuple[Tensor, Tensor]:
    """x of any shape, for two groups of readers.

    Args:
        x: rows of this rank.
        merge: what becomes of the gradients that come back from either.

    Returns:
        x for the first group, and x for the second.
    """
    if merge == "sum":
        return x, x
    if merge == "apart":
        return x, x.detach()
    return _Fork.apply(x, merge, step_group())


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, merge: Merge, group: Group) -> tuple[Tensor, Tensor]:
        ctx.merge = merge
        ctx.group = group
        return x.view_as(x), x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor, None, None]:
        return merged(first, second, ctx.merge, ctx.group), None, None


def merged(first: Tensor, second: Tensor, merge: Merge, group: Group = None) -> Tensor:
    """Gradients of one shape -> what is handed on; their lengths and angle are those over all ranks of the group."""
    a = first.float()
    b = second.float()
    sums = torch.stack([(a * b).sum(), a.square().sum(), b.square().sum()])
    along, of_first, of_second = sum_over_ranks(sums, group).unbind()
    smallest = torch.finfo(sums.dtype).tiny
    if merge == "balanced":
        factor = (of_first / of_second.clamp(min=smallest)).sqrt().clamp(max=1)
        return (a + factor * b).to(first.dtype)
    against = along.clamp(max=0)
    kept_first = a - against / of_second.clamp(min=smallest) * b
    kept_second = b - against / of_first.clamp(min=smallest) * a
    return (kept_first + kept_second).to(first.dtype)
