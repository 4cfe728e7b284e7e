"""The progressive alignment loss: named terms, weighted by the schedule, summed once.

L(t) = Σ_m λ_vq·L_vq(m) + Σ_p [ w_global(p,t)·L_global(p) + w_fine(p,t)·L_fine(p) + w_match(p,t)·L_match(p) ] +
λ_moe·L_moe
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alignment.contrastive import Contrastive
from alignment.fine_grained import CodeAgreement, LateInteraction
from alignment.matching import hard_negatives, matching_loss
from alignment.schedule import PAIRS, LossWeights

MatchLogits = Callable[[str, str, Tensor, Tensor], Tensor]
"""(modality a, modality b, rows of a (N,), rows of b (N,)) -> match logits (N,)."""


@dataclass(frozen=True)
class LossConfig:
    contrastive: Literal["softmax", "sigmoid"] = "softmax"
    temperature: float = 0.07
    """Initial temperature of the contrastive terms; learned from there."""
    vq: float = 0.25
    """Weight of each modality's commitment, codebook and reconstruction losses."""
    fine: float = 0.5
    """Weight of token-level late interaction."""
    codes: float = 0.1
    """Weight of code agreement over the shared codebook."""
    match: float = 0.5
    """Weight of binary matching through cross-modal attention."""
    fine_rows: int = 32
    """Samples per step and process on which late interaction is computed: it costs rows² token similarities."""
    match_rows: int = 16
    """Samples per step on which matching is computed: it costs three joint forwards each."""
    moe: float = 1.0
    """Weight of the router's own losses, which carry their coefficients with them."""
    shared_codes: int = 256
    """Entries of the codebook that the modalities share in the code agreement term."""


@dataclass
class Aligned:
    """One side of a pair: embedding (B, E) and tokens (B, T, P) are unit vectors, mask (B, T) bool, present
    (B,) bool."""

    embedding: Tensor
    tokens: Tensor
    mask: Tensor
    present: Tensor


@dataclass
class LossTerms:
    """total (): what is minimised; terms: every unweighted term by name, what is logged."""

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor, weight: float) -> None:
        self.terms[name] = value
        self.total = self.total + weight * value


class ProgressiveAlignment(nn.Module):
    """All pair terms of the loss. One temperature per pair, one shared codebook for all."""

    def __init__(self, config: LossConfig, token_width: int, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.config = config
        self.pairs = [(a, b) for a, b in PAIRS if a in modalities and b in modalities]
        self.contrastive: Any = nn.ModuleDict(
            {f"{a}_{b}": Contrastive(config.contrastive, config.temperature) for a, b in self.pairs}
        )
        self.late: Any = nn.ModuleDict({f"{a}_{b}": LateInteraction(config.temperature) for a, b in self.pairs})
        self.codes = CodeAgreement(config.shared_codes, token_width)

    def forward(self, sides: dict[str, Aligned], ids: Tensor, weights: LossWeights, match: MatchLogits) -> LossTerms:
        """The sides by modality, image ids (B,), the schedule's weights now, and the joint head -> LossTerms."""
        loss = LossTerms(ids.new_zeros((), dtype=torch.float32))
        for a, b in self.pairs:
            if a not in sides or b not in sides:
                continue
            rows = (sides[a].present & sides[b].present).nonzero().squeeze(1)
            if len(rows) > 1:
                self.pair(loss, (a, b), sides, rows, ids[rows], weights, match)
        return loss

    def pair(
        self, loss: LossTerms, pair: tuple[str, str], sides: dict[str, Aligned], rows: Tensor, ids: Tensor,
        weights: LossWeights, match: MatchLogits,
    ) -> None:  # fmt: skip
        """Add one pair's terms, over the `rows` that have both modalities. A term of weight zero is not computed."""
        (a, b), config = pair, self.config
        x, y = sides[a], sides[b]
        if weights.contrastive[pair] > 0:
            value = self.contrastive[f"{a}_{b}"](x.embedding[rows], y.embedding[rows], ids)
            loss.add(f"global/{a}_{b}", value, weights.contrastive[pair])
        if weights.fine[pair] > 0 and config.codes > 0:
            value = self.codes(x.tokens[rows], x.mask[rows], y.tokens[rows], y.mask[rows], ids)
            loss.add(f"codes/{a}_{b}", value, weights.fine[pair] * config.codes)
        # Batches come in random order, so the first rows are a random sample.
        few = rows[: config.fine_rows]
        if weights.fine[pair] > 0 and config.fine > 0:
            value = self.late[f"{a}_{b}"](x.tokens[few], x.mask[few], y.tokens[few], y.mask[few], ids[: len(few)])
            loss.add(f"fine/{a}_{b}", value, weights.fine[pair] * config.fine)
        if weights.match[pair] > 0 and config.match > 0:
            loss.add(f"match/{a}_{b}", self.matching(pair, sides, rows, ids, match), weights.match[pair] * config.match)

    def matching(
        self, pair: tuple[str, str], sides: dict[str, Aligned], rows: Tensor, ids: Tensor, match: MatchLogits
    ) -> Tensor:
        """One positive and two hard negatives for each of the first rows, all through the joint head in one call.

        The negatives come from the whole batch: the larger it is, the harder they are.
        """
        a, b = pair
        with torch.no_grad():
            similarity = sides[a].embedding[rows] @ sides[b].embedding[rows].T
            wrong_b, wrong_a = hard_negatives(similarity, ids, self.contrastive[f"{a}_{b}"].scale)
        count = self.config.match_rows
        few, wrong_b, wrong_a = rows[:count], wrong_b[:count], wrong_a[:count]
        from_a = torch.cat([few, few, rows[wrong_a]])
        from_b = torch.cat([few, rows[wrong_b], few])
        logits = match(a, b, from_a, from_b)
        return matching_loss(logits[: len(few)], logits[len(few) :])
