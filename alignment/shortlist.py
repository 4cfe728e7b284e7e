"""Late interaction of each row with a few columns of its own, the hardest, in place of all: what a re-ranking asks."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import compute_dtype

ROWS = 8
"""Rows whose columns' tokens are gathered at once: they and their similarities stay in a CPU's cache."""
ROWS_ELSEWHERE = 128
"""The same on other devices, which wait for launches."""


def hardest(logits: Tensor, ids: Tensor, count: int, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each row's own column, and the wrong ones that score highest.

    Args:
        logits: (B, B), pairs on the diagonal.
        ids: (B,); equal ones are no negatives.
        count: how many columns of a row, its own among them.
        real: (B,) bool, the columns that count; None for all.

    Returns:
        columns (B, K) int64, K = min(count, B), the row's own first; their logits (B, K), -inf where a column is no
        negative.
    """
    right = ids[:, None] == ids[None, :]
    if real is not None:
        right = right | ~real
    wrong = logits.float().masked_fill(right, float("-inf"))
    found, columns = wrong.topk(min(count, len(ids)) - 1, dim=1)
    own = torch.arange(len(ids), device=ids.device)[:, None]
    return torch.cat([own, columns], 1), torch.cat([logits.float().diagonal()[:, None], found], 1)


def shortlist_interaction(a: Tensor, mask_a: Tensor, b: Tensor, mask_b: Tensor, columns: Tensor) -> Tensor:
    """`fine_grained.late_interaction` of each row of `a` with its columns of `b` alone.

    Args:
        a: unit vectors (N, S, D).
        mask_a: (N, S) bool, True where a token is real.
        b: unit vectors (M, T, D).
        mask_b: (M, T) bool.
        columns: (N, K) int64, places in b.

    Returns:
        (N, K) in [-1, 1], float32 at least. Products are made in a's dtype, or in autocast's.
    """
    dtype = compute_dtype(a)
    with torch.autocast(a.device.type, enabled=False):
        return _Shortlist.apply(a.to(dtype), mask_a, b.to(dtype), mask_b, columns)


class _Shortlist(torch.autograd.Function):
    """Saves who is whose best partner, not how similar all others are: their gradients are zero."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, mask_a: Tensor, b: Tensor, mask_b: Tensor, columns: Tensor) -> Tensor:
        n, k = columns.shape
        s, t = a.shape[1], b.shape[1]
        share_a, share_b = shares(mask_a, mask_b)
        found = a.new_empty(n, k, dtype=share_a.dtype)
        best_b = columns.new_empty(n, s, k, dtype=torch.int16)
        best_a = columns.new_empty(n, k, t, dtype=torch.int16)
        for rows in blocks(len(a), _size(a)):
            chosen = columns[rows]
            similarity = torch.bmm(a[rows], b[chosen].flatten(1, 2).transpose(1, 2)).float().view(-1, s, k, t)
            best, place = similarity.masked_fill(~mask_b[chosen][:, None], -1).max(3)
            best_b[rows] = place.short()
            found[rows] = (best * share_a[rows, :, None]).sum(1)
            best, place = similarity.masked_fill(~mask_a[rows, :, None, None], -1).max(1)
            best_a[rows] = place.short()
            found[rows] += (best * share_b[chosen]).sum(2)
        ctx.save_for_backward(a, mask_a, b, mask_b, columns, best_b, best_a)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, mask_a, b, mask_b, columns, best_b, best_a = ctx.saved_tensors
        k = columns.shape[1]
        s, t = a.shape[1], b.shape[1]
        share_a, share_b = shares(mask_a, mask_b)
        # Who has no tokens has no partners.
        grad = grad * mask_a.any(1)[:, None] * mask_b.any(1)[columns]
        d_a = torch.empty_like(a)
        d_b = torch.zeros_like(b, dtype=grad.dtype)
        for rows in blocks(len(a), _size(a)):
            chosen = columns[rows]
            g = grad[rows]
            d = g.new_zeros(len(g), s, k, t)
            of_best_b = (g[:, None] * share_a[rows, :, None])[..., None]
            of_best_a = (g[..., None] * share_b[chosen])[:, None]
            d.scatter_(3, best_b[rows, ..., None].long(), of_best_b)
            d.scatter_add_(1, best_a[rows, None].long(), of_best_a)
            d = d.view(-1, s, k * t).to(a.dtype)
            d_a[rows] = torch.bmm(d, b[chosen].flatten(1, 2))
            of_chosen = torch.bmm(d.transpose(1, 2), a[rows]).to(grad.dtype)
            d_b.index_add_(0, chosen.flatten(), of_chosen.view(-1, *b.shape[1:]))
        return d_a, None, d_b.to(b.dtype), None, None


def _size(a: Tensor) -> int:
    return ROWS if a.device.type == "cpu" else ROWS_ELSEWHERE


def blocks(rows: int, size: int) -> Iterator[slice]:
    """All rows, `size` at a time."""
    return (slice(start, start + size) for start in range(0, rows, size))


def shares(*masks: Tensor) -> list[Tensor]:
    """Half of one over the number of real tokens, at each of them: (N, S) float32."""
    return [0.5 * mask / mask.sum(1, keepdim=True).clamp(min=1) for mask in masks]
