"""The definition of the contrastive losses: the whole (B, B) matrix of logits, ordinary autograd."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

Group = dist.ProcessGroup | None


def info_nce(a: Tensor, b: Tensor, scale: Tensor, ids: Tensor | None = None, group: Group = None) -> Tensor:
    """Mean of the cross entropies of rows and of columns: a, b (B, D), scale (), ids (B,) -> ()."""
    a, b, ids = _whole_batch(a, b, ids, group)
    logits = (scale.to(a.dtype) * a @ b.T).masked_fill(_left_out(ids, a), -torch.inf)
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid_loss(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, ids: Tensor | None = None, group: Group = None
) -> Tensor:
    """-1/B Σ_ij log σ(±(scale a_i·b_j + bias)), + on the diagonal: a, b (B, D), scale (), bias (), ids (B,) -> ()."""
    a, b, ids = _whole_batch(a, b, ids, group)
    logits = scale.to(a.dtype) * a @ b.T + bias.to(a.dtype)
    sign = 2 * torch.eye(len(a), dtype=a.dtype, device=a.device) - 1
    return -F.logsigmoid(sign * logits).masked_fill(_left_out(ids, a), 0).sum() / len(a)


def _left_out(ids: Tensor | None, a: Tensor) -> Tensor:
    """(B, B) bool: the pairs off the diagonal that have equal ids."""
    if ids is None:
        return torch.zeros(len(a), len(a), dtype=torch.bool, device=a.device)
    return (ids[:, None] == ids[None, :]) & ~torch.eye(len(a), dtype=torch.bool, device=a.device)


def _whole_batch(a: Tensor, b: Tensor, ids: Tensor | None, group: Group) -> tuple[Tensor, Tensor, Tensor | None]:
    dtype = torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(dtype), b.to(dtype)
    if group is None:
        return a, b, ids
    a, b = _Gather.apply(a, group), _Gather.apply(b, group)
    return a, b, None if ids is None else _Gather.apply(ids, group)


class _Gather(torch.autograd.Function):
    """Concatenation over ranks; the gradient is summed over ranks, each of which holds the whole loss."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, shard: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        parts = [torch.empty_like(shard) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, shard.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        group = ctx.group  # type: ignore[attr-defined]
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=group)
        return total.chunk(dist.get_world_size(group))[dist.get_rank(group)], None
