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


@dataclass(frozen=True)
class DrawnPairs:
    """Rows (N,) of modalities a and b that are to be matched: the first `positives` are pairs, the others are not."""

    a: str
    b: str
    rows_a: Tensor
    rows_b: Tensor
    positives: int


MatchLogits = Callable[[list[DrawnPairs]], Tensor]
"""Drawn pairs of several pairs of modalities -> match logits of all of them, one after another."""


@dataclass(frozen=True)
class LossConfig:
    """Weights and sizes of the loss terms."""

    contrastive: Literal["softmax", "sigmoid"] = "softmax"
    temperature: float = 0.1
    """Initial temperature of the contrastive terms; learned from there."""
    vq: float = 0.25
    """Weight of each modality's commitment, codebook and reconstruction losses."""
    filip: float = 0.5
    """Weight of token-level late interaction."""
    code_match: float = 0.1
    """Weight of code agreement over the shared codebook."""
    itm: float = 0.5
    """Weight of binary matching through cross-modal attention."""
    filip_rows: int = 32
    """Samples per step and process on which late interaction is computed: it costs rows² token similarities."""
    itm_rows: int = 8
    """Samples per step on which matching is computed: it costs three joint forwards each."""
    moe: float = 1.0
    """Weight of the router's own losses, which carry their coefficients with them."""
    code_match_codes: int = 256
    """Entries of the codebook that the modalities share in the code agreement term."""


@dataclass
class Aligned:
    """One side of a pair: embedding (N, E) and tokens (N, T, P) are unit vectors, mask (N, T) bool, present
    (N,) bool.

    A side may hold several rows of each of B samples, as several captions of an image: N is a multiple of B, and row r
    belongs to sample r mod B.
    """

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
        self.filip: Any = nn.ModuleDict({f"{a}_{b}": LateInteraction(config.temperature) for a, b in self.pairs})
        self.code_match = CodeAgreement(config.code_match_codes, token_width)

    def forward(self, sides: dict[str, Aligned], ids: Tensor, weights: LossWeights, match: MatchLogits) -> LossTerms:
        """The sides by modality, image ids (B,), the schedule's weights now, and the joint head -> LossTerms."""
        loss = LossTerms(ids.new_zeros((), dtype=torch.float32))
        drawn = []
        for a, b in self.pairs:
            if a not in sides or b not in sides:
                continue
            rows_a, rows_b = paired_rows(sides[a].present, sides[b].present)
            if len(rows_a) < 2:
                continue
            of_rows = ids[rows_a % len(ids)]
            self.pair(loss, (a, b), sides, (rows_a, rows_b), of_rows, weights)
            if weights.itm[a, b] > 0 and self.config.itm > 0:
                drawn.append(self.draw((a, b), sides, (rows_a, rows_b), of_rows))
        # All pairs of modalities pass the joint head in one call: small calls cost more than what they compute.
        logits = match(drawn).split([len(d.rows_a) for d in drawn]) if drawn else ()
        for d, found in zip(drawn, logits, strict=True):
            value = matching_loss(found[: d.positives], found[d.positives :])
            loss.add(f"itm/{d.a}_{d.b}", value, weights.itm[d.a, d.b] * self.config.itm)
        return loss

    def pair(
        self,
        loss: LossTerms,
        pair: tuple[str, str],
        sides: dict[str, Aligned],
        rows: tuple[Tensor, Tensor],
        ids: Tensor,
        weights: LossWeights,
    ) -> None:
        """Add one pair's terms but matching, over its `rows` (P,) of each side, ids (P,). A term of weight zero is not
        computed.
        """
        (a, b), config = pair, self.config
        x, y = sides[a], sides[b]
        i, j = rows
        if weights.contrastive[pair] > 0:
            value = self.contrastive[f"{a}_{b}"](x.embedding[i], y.embedding[j], ids)
            loss.add(f"contrastive/{a}_{b}", value, weights.contrastive[pair])
        if weights.fine[pair] > 0 and config.code_match > 0:
            value = self.code_match(x.tokens[i], x.mask[i], y.tokens[j], y.mask[j], ids)
            loss.add(f"code_match/{a}_{b}", value, weights.fine[pair] * config.code_match)
        # Batches come in random order, so the first rows are a random sample.
        i, j, few = i[: config.filip_rows], j[: config.filip_rows], ids[: config.filip_rows]
        if weights.fine[pair] > 0 and config.filip > 0:
            value = self.filip[f"{a}_{b}"](x.tokens[i], x.mask[i], y.tokens[j], y.mask[j], few)
            loss.add(f"filip/{a}_{b}", value, weights.fine[pair] * config.filip)

    def draw(
        self, pair: tuple[str, str], sides: dict[str, Aligned], rows: tuple[Tensor, Tensor], ids: Tensor
    ) -> DrawnPairs:
        """One positive and two hard negatives for each of the first pairs.

        The negatives come from the whole batch: the larger it is, the harder they are.
        """
        (a, b), (i, j), count = pair, rows, self.config.itm_rows
        with torch.no_grad():
            similarity = sides[a].embedding[i] @ sides[b].embedding[j].T
            wrong_b, wrong_a = hard_negatives(similarity, ids, self.contrastive[f"{a}_{b}"].scale)
        few_a, few_b, wrong_b, wrong_a = i[:count], j[:count], j[wrong_b[:count]], i[wrong_a[:count]]
        rows_a, rows_b = torch.cat([few_a, few_a, wrong_a]), torch.cat([few_b, wrong_b, few_b])
        return DrawnPairs(a, b, rows_a, rows_b, len(few_a))


def paired_rows(present_a: Tensor, present_b: Tensor) -> tuple[Tensor, Tensor]:
    """present of two sides (N,), (M,) bool -> rows of each (P,), (P,) that belong to one sample, both present.

    All samples once before any sample twice: the first pairs are of different samples.
    """
    row = torch.arange(max(len(present_a), len(present_b)), device=present_a.device)
    i, j = row % len(present_a), row % len(present_b)
    kept = present_a[i] & present_b[j]
    return i[kept], j[kept]
