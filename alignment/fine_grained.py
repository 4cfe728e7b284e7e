"""The fine-grained terms: token-level late interaction, and agreement of code distributions over a shared codebook."""

from typing import Any

import torch
from torch import Tensor, nn

from alignment.contrastive import initial_log_scale, inverse_temperature
from alignment.matching import mean_of
from alignment.shortlist import blocks, hardest, shares, shortlist_interaction
from kernels.collectives import gather, world
from kernels.dispatch import compute_dtype

ROWS = 8
"""Rows of `a` that meet all of `b` at once: their similarities stay in the cache from product to maximum."""
SHORTLIST = 16
"""Columns of a row that late interaction on top of other logits tells apart: its own, and the hardest wrong ones."""
HIDDEN = -4.0
"""Added to a padding token's similarities: below every cosine, so that it is nobody's best partner."""


def late_interaction(a: Tensor, mask_a: Tensor, b: Tensor, mask_b: Tensor, block: int = ROWS) -> Tensor:
    """FILIP's similarity (Yao et al. 2022): each token finds its best partner, the finds are averaged, both ways.

    a (N, S, D), mask_a (N, S), b (M, T, D), mask_b (M, T), unit vectors -> (N, M) in [-1, 1], float32 at least.
    Products are made in a's dtype, or in autocast's. Of N·M·S·T similarities only `block` rows of `a` live at once.
    """
    dtype = compute_dtype(a)
    with torch.autocast(a.device.type, enabled=False):
        return _LateInteraction.apply(a.to(dtype), mask_a, b.to(dtype), mask_b, block)


class _LateInteraction(torch.autograd.Function):
    """Saves who is whose best partner, not how similar all others are: their gradients are zero."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, mask_a: Tensor, b: Tensor, mask_b: Tensor, block: int) -> Tensor:
        n, s, _ = a.shape
        m, t, _ = b.shape
        # Two more channels carry the masks through the product.
        hidden_a = HIDDEN * ~mask_a[..., None]
        hidden_b = HIDDEN * ~mask_b[..., None]
        left = torch.cat([a, torch.ones_like(a[..., :1]), hidden_a], 2).to(a.dtype)
        right = torch.cat([b, hidden_b, torch.ones_like(b[..., :1])], 2).to(b.dtype)
        right = right.flatten(0, 1).T.contiguous()
        share_a, share_b = shares(mask_a, mask_b)
        found = a.new_empty(n, m, dtype=share_a.dtype)
        best_b = mask_a.new_empty(n, s, m, dtype=torch.int32)
        best_a = mask_a.new_empty(n, m, t, dtype=torch.int32)
        for rows in blocks(n, block):
            similarity = (left[rows].flatten(0, 1) @ right).view(-1, s, m, t)
            best, best_b[rows] = similarity.max(3)
            found[rows] = (best.clamp(min=-1) * share_a[rows, :, None]).sum(1)
            best, best_a[rows] = similarity.max(1)
            found[rows] += (best.clamp(min=-1) * share_b).sum(2)
        ctx.save_for_backward(a, mask_a, b, mask_b, best_b, best_a)
        ctx.block = block
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, mask_a, b, mask_b, best_b, best_a = ctx.saved_tensors
        n, s, _ = a.shape
        m, t, _ = b.shape
        share_a, share_b = shares(mask_a, mask_b)
        grad = grad * mask_a.any(1)[:, None] * mask_b.any(1)  # who has no tokens has no partners
        d_a = torch.empty_like(a)
        d_b = torch.zeros_like(b, dtype=grad.dtype)
        for rows in blocks(n, ctx.block):
            g = grad[rows]
            d = g.new_zeros(len(g), s, m, t)
            of_best_b = (g[:, None] * share_a[rows, :, None])[..., None]
            of_best_a = (g[..., None] * share_b)[:, None]
            d.scatter_(3, best_b[rows, ..., None].long(), of_best_b)
            d.scatter_add_(1, best_a[rows, None].long(), of_best_a)
            d = d.view(-1, m * t).to(a.dtype)
            d_a[rows] = (d @ b.flatten(0, 1)).view_as(a[rows])
            d_b += (d.T @ a[rows].flatten(0, 1)).view_as(b)
        return d_a, None, d_b.to(b.dtype), None, None


def paired_late_interaction(a: Tensor, mask_a: Tensor, b: Tensor, mask_b: Tensor) -> Tensor:
    """The diagonal of `late_interaction` alone: a (P, S, D), b (P, T, D) and their masks -> (P,)."""
    similarity = torch.einsum("psd,ptd->pst", a, b).float()
    best_b = similarity.masked_fill(~mask_b[:, None, :], -1.0).amax(2)
    best_a = similarity.masked_fill(~mask_a[:, :, None], -1.0).amax(1)
    mean_a = (best_b * mask_a).sum(1) / mask_a.sum(1).clamp(min=1)
    mean_b = (best_a * mask_b).sum(1) / mask_b.sum(1).clamp(min=1)
    return 0.5 * (mean_a + mean_b)


class LateInteraction(nn.Module):
    """InfoNCE over late-interaction similarities. Owns its temperature."""

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.log_scale = initial_log_scale(temperature)

    @property
    def scale(self) -> Tensor:
        """The inverse temperature ()."""
        return inverse_temperature(self.log_scale)

    def forward(
        self,
        a: Tensor,
        mask_a: Tensor,
        b: Tensor,
        mask_b: Tensor,
        ids: Tensor,
        real: Tensor | None = None,
        logits: Tensor | None = None,
    ) -> Tensor:
        """All rows against all columns of what is given; of given logits the hardest of each row and column.

        Args:
            a: unit tokens (B, S, D).
            mask_a: (B, S) bool, True where a token is real.
            b: unit tokens (B, T, D).
            mask_b: (B, T) bool.
            ids: (B,); equal ones are no negatives.
            real: (B,) bool, the rows that are pairs; None for all.
            logits: (B, B), to which the similarities, by this term's own scale, are added; None for none. What they
                rank highest is what is left to be told: `SHORTLIST` columns of each row, and rows of each column.

        Returns:
            ().
        """
        if logits is None:
            return dense_info_nce(late_interaction(a, mask_a, b, mask_b) * self.scale, ids, real)
        columns, of_columns = hardest(logits, ids, SHORTLIST, real)
        rows, of_rows = hardest(logits.T, ids, SHORTLIST, real)
        forward = shortlist_interaction(a, mask_a, b, mask_b, columns) * self.scale + of_columns
        backward = shortlist_interaction(b, mask_b, a, mask_a, rows) * self.scale + of_rows
        losses = 0.5 * (own_against_all(forward) + own_against_all(backward))
        return losses.mean() if real is None else mean_of(losses, real)


def own_against_all(scores: Tensor) -> Tensor:
    """scores (B, K), the right one first -> (B,): cross-entropy of choosing it."""
    return scores.logsumexp(1) - scores[:, 0]


class CodeAgreement(nn.Module):
    """Cross-modal code matching (Liu et al. 2022, "Cross-Modal Discrete Representation Learning").

    Every token is softly assigned to one codebook that both modalities share; a sample is the mean of its tokens'
    assignments. Matched samples must agree in these distributions more than unmatched ones: symmetric cross-entropy
    as the similarity in InfoNCE. The contrast is what keeps all tokens from falling into one code, where plain
    agreement would be perfect and empty.
    """

    def __init__(self, num_codes: int, width: int, temperature: float = 0.1) -> None:
        super().__init__()
        self.codebook = nn.Parameter(nn.functional.normalize(torch.randn(num_codes, width), dim=-1))
        self.temperature = temperature

    def distribution(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Unit tokens (B, T, D), mask (B, T) -> probabilities (B, S) over the shared codes."""
        with torch.autocast(tokens.device.type, enabled=False):
            logits = tokens.float() @ nn.functional.normalize(self.codebook, dim=-1).T / self.temperature
            share = mask / mask.sum(1, keepdim=True).clamp(min=1)
            return torch.bmm(share[:, None].to(logits.dtype), logits.softmax(-1)).squeeze(1)

    def forward(self, p: Tensor, q: Tensor, ids: Tensor, real: Tensor | None = None) -> Tensor:
        """The `distribution` of either side (B, S), ids (B,), real (B,) bool of the rows that are pairs (None: all) ->
        ().

        The batch is the global one, over all ranks, of as many rows on each. Everything is float32, also under
        autocast: bfloat16 keeps three digits of a logarithm near zero.
        """
        group = world()
        with torch.autocast(p.device.type, enabled=False):
            p = gather(p, group)
            q = gather(q, group)
            similarity = p @ (q + 1e-6).log().T + (p + 1e-6).log() @ q.T
            joint_real = None if real is None else gather(real, group)
            return dense_info_nce(similarity, gather(ids, group), joint_real)


def dense_info_nce(logits: Tensor, ids: Tensor, real: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE from a logit matrix (B, B) and ids (B,) -> (); equal ids off the diagonal are not negatives.

    real: (B,) bool, the rows and columns that are pairs; None for all.
    """
    hidden = ids[:, None] == ids[None, :]
    count: Tensor | int = len(ids)
    if real is not None:
        # A row without negatives costs nothing, and has no gradient.
        hidden = hidden | ~real[:, None] | ~real
        count = real.sum().clamp(min=1)
    hidden.fill_diagonal_(False)
    logits = logits.float().masked_fill(hidden, float("-inf"))
    rows = logits.logsumexp(1)
    columns = logits.logsumexp(0)
    return (0.5 * (rows + columns) - logits.diagonal()).sum() / count
