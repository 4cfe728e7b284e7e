"""The definition of the contrastive losses: the whole (B, B) matrix of logits, ordinary autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.collectives import Group, gather_uneven, lengths_over_ranks


def info_nce(a: Tensor, b: Tensor, scale: Tensor, ids: Tensor | None = None, group: Group = None) -> Tensor:
    """Mean of the cross entropies of rows and of columns: a, b (B, D), scale (), ids (B,) -> ()."""
    a, b, ids = _whole_batch(a, b, ids, group)
    logits = scale.to(a.dtype) * a @ b.T
    logits = logits.masked_fill(_skipped(ids, a), -torch.inf)
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid_loss(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, ids: Tensor | None = None, group: Group = None
) -> Tensor:
    """-1/B Σ_ij log σ(±(scale a_i·b_j + bias)), + on the diagonal: a, b (B, D), scale (), bias (), ids (B,) -> ()."""
    a, b, ids = _whole_batch(a, b, ids, group)
    logits = scale.to(a.dtype) * a @ b.T + bias.to(a.dtype)
    sign = 2 * torch.eye(len(a), dtype=a.dtype, device=a.device) - 1
    log_likelihood = F.logsigmoid(sign * logits).masked_fill(_skipped(ids, a), 0)
    return -log_likelihood.sum() / len(a)


def _skipped(ids: Tensor | None, a: Tensor) -> Tensor:
    """(B, B) bool: the pairs off the diagonal that have equal ids."""
    if ids is None:
        return torch.zeros(len(a), len(a), dtype=torch.bool, device=a.device)
    return (ids[:, None] == ids[None, :]) & ~torch.eye(len(a), dtype=torch.bool, device=a.device)


def _whole_batch(a: Tensor, b: Tensor, ids: Tensor | None, group: Group) -> tuple[Tensor, Tensor, Tensor | None]:
    """The batch of all ranks, float32 at least: a (B, D), b (B, D), ids (B,)."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    lengths = lengths_over_ranks(a, group)
    a = gather_uneven(a.to(dtype), group, lengths)
    b = gather_uneven(b.to(dtype), group, lengths)
    if ids is not None:
        ids = gather_uneven(ids, group, lengths)
    return a, b, ids
