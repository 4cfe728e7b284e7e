"""The fine-grained terms: token-level late interaction, and agreement of code distributions over a shared codebook."""

import torch
from torch import Tensor, nn

from alignment.gather import gather


def late_interaction(a: Tensor, mask_a: Tensor, b: Tensor, mask_b: Tensor, block: int = 32) -> Tensor:
    """FILIP's similarity (Yao et al. 2022): each token finds its best partner, the finds are averaged, both ways.

    a (N, S, D), mask_a (N, S), b (M, T, D), mask_b (M, T), unit vectors -> (N, M) in [-1, 1].
    Rows of `a` go in blocks that are recomputed in backward, so that N·M·S·T similarities never live at once.
    """
    blocks = []
    for start in range(0, len(a), block):
        rows = slice(start, start + block)
        if torch.is_grad_enabled():
            blocks.append(
                torch.utils.checkpoint.checkpoint(_interact, a[rows], mask_a[rows], b, mask_b, use_reentrant=False)
            )
        else:
            blocks.append(_interact(a[rows], mask_a[rows], b, mask_b))
    return torch.cat(blocks)


def _interact(a: Tensor, mask_a: Tensor, b: Tensor, mask_b: Tensor) -> Tensor:
    n, s, d = a.shape
    m, t, _ = b.shape
    similarity = (a.reshape(n * s, d) @ b.reshape(m * t, d).T).float().view(n, s, m, t)
    return 0.5 * (
        _mean_of_best(similarity, mask_a, mask_b) + _mean_of_best(similarity.permute(2, 3, 0, 1), mask_b, mask_a).T
    )


def _mean_of_best(similarity: Tensor, mask: Tensor, other: Tensor) -> Tensor:
    """similarity (N, S, M, T) -> (N, M): the best real partner among T, averaged over the real tokens of S."""
    best = similarity.masked_fill(~other, -1.0).amax(3)
    return (best * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def paired_late_interaction(a: Tensor, mask_a: Tensor, b: Tensor, mask_b: Tensor) -> Tensor:
    """The diagonal of `late_interaction` alone: a (P, S, D), b (P, T, D) and their masks -> (P,)."""
    similarity = torch.einsum("psd,ptd->pst", a, b).float()
    best_b = similarity.masked_fill(~mask_b[:, None, :], -1.0).amax(2)
    best_a = similarity.masked_fill(~mask_a[:, :, None], -1.0).amax(1)
    mean_a = (best_b * mask_a).sum(1) / mask_a.sum(1).clamp(min=1)
    mean_b = (best_a * mask_b).sum(1) / mask_b.sum(1).clamp(min=1)
    return 0.5 * (mean_a + mean_b)


class LateInteraction(nn.Module):
    """InfoNCE over late-interaction similarities: unit tokens and masks of both sides, ids (B,) -> ().

    Owns its temperature.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1 / temperature).log())

    @property
    def scale(self) -> Tensor:
        return self.log_scale.clamp(max=4.6052).exp()

    def forward(self, a: Tensor, mask_a: Tensor, b: Tensor, mask_b: Tensor, ids: Tensor) -> Tensor:
        """The rank's own rows and columns stand against the rank's own:
        token tensors are too large to gather every step."""
        return dense_info_nce(late_interaction(a, mask_a, b, mask_b) * self.scale, ids)


class CodeAgreement(nn.Module):
    """Cross-modal code matching (Liu et al. 2022, "Cross-Modal Discrete Representation Learning").

    Every token is softly assigned to one codebook that both modalities share; a sample is the mean of its tokens'
    assignments. Matched samples must agree in these distributions more than unmatched ones: symmetric cross-entropy
    as the similarity in InfoNCE. The contrast is what keeps all tokens from falling into one code, where plain
    agreement would be perfect and empty.
    """

    def __init__(self, codes: int, width: int, temperature: float = 0.1) -> None:
        super().__init__()
        self.codebook = nn.Parameter(nn.functional.normalize(torch.randn(codes, width), dim=-1))
        self.temperature = temperature

    def distribution(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Unit tokens (B, T, D), mask (B, T) -> probabilities (B, S) over the shared codes."""
        logits = tokens.float() @ nn.functional.normalize(self.codebook, dim=-1).T / self.temperature
        p = logits.softmax(-1) * mask[..., None]
        return p.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)

    def forward(self, a: Tensor, mask_a: Tensor, b: Tensor, mask_b: Tensor, ids: Tensor) -> Tensor:
        """Unit tokens a (B, S, D), b (B, T, D), their masks, ids (B,) -> ().

        The batch is the global one, over all ranks.
        """
        p, q = gather(self.distribution(a, mask_a)), gather(self.distribution(b, mask_b))
        similarity = p @ (q + 1e-6).log().T + (p + 1e-6).log() @ q.T
        return dense_info_nce(similarity, gather(ids))


def dense_info_nce(logits: Tensor, ids: Tensor) -> Tensor:
    """Symmetric InfoNCE from a logit matrix (B, B) and ids (B,) -> (); equal ids off the diagonal are not negatives."""
    same = ids[:, None] == ids[None, :]
    same.fill_diagonal_(False)
    logits = logits.float().masked_fill(same, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return 0.5 * (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target))
