"""The progressive alignment loss: named terms, weighted by the schedule, summed once.

L(t) = Σ_m λ_vq·L_vq(m) + Σ_p [ w_global(p,t)·L_global(p) + w_fine(p,t)·L_fine(p) + w_match(p,t)·L_match(p) ] +
λ_moe·L_moe

Of a pair p: L_global is the term `contrastive`; L_fine are `code_match` and `filip`; L_match is `itm`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from alignment.contrastive import Contrastive, clamp_log_scale
from alignment.fine_grained import CodeAgreement, LateInteraction
from alignment.matching import hard_negatives, matching_loss
from alignment.schedule import LossWeights, Pair
from kernels.collectives import Group, gather_uneven, lengths_over_ranks, rank_and_size, world
from kernels.ranges import check_ranges

SHARED_CODES = 256
"""Entries of the codebook that the modalities share in the term `code_match`."""


@dataclass(frozen=True)
class LossConfig:
    """Weights and sizes of the loss terms."""

    contrastive: Literal["softmax", "sigmoid"] = "softmax"
    """InfoNCE, or the pairwise sigmoid loss."""
    temperature: Annotated[float, "[0.01, inf)"] = 0.1
    """Initial temperature of the contrastive terms; learned from there."""
    vq: Annotated[float, "[0, inf)"] = 0.25
    """Weight of each modality's commitment, codebook and reconstruction losses."""
    filip: Annotated[float, "[0, inf)"] = 0.5
    """Weight of token-level late interaction."""
    code_match: Annotated[float, "[0, inf)"] = 0.1
    """Weight of code agreement over the shared codebook."""
    itm: Annotated[float, "[0, inf)"] = 0.5
    """Weight of binary matching through cross-modal attention."""
    filip_rows: Annotated[int, "[2, inf)"] = 32
    """Samples per step on which late interaction is computed: it costs rows² token similarities."""
    itm_rows: Annotated[int, "[1, inf)"] = 8
    """Samples per step on which matching is computed: it costs three joint forwards each."""

    def __post_init__(self) -> None:
        check_ranges(self, "loss")


@dataclass
class Aligned:
    """One side of a pair: embedding (N, E) and tokens (N, T, P) are unit vectors, mask (N, T) bool; present (N,) bool;
    sample_index (N,) int64, the sample each row belongs to. Several rows may belong to one, as captions of an image."""

    embedding: Tensor
    tokens: Tensor
    mask: Tensor
    present: Tensor
    sample_index: Tensor


@dataclass
class PairedRows:
    """Of two modalities the rows a (P,), b (P,) of this rank that belong together, all samples once before any twice.

    lengths: P on each rank. order (ΣP,): which of all ranks' pairs, joined in rank order, comes first, which second, as
    in one process that has all their samples.
    """

    a: Tensor
    b: Tensor
    lengths: list[int]
    order: Tensor

    def joined(self, x: Tensor, group: Group) -> Tensor:
        """x (P, ...) of this rank's pairs -> (ΣP, ...) of all ranks' pairs in the order of one process."""
        return gather_uneven(x, group, self.lengths)[self.order]

    def first(self, count: int) -> list[int]:
        """How many of the first `count` pairs each rank has; they are the first of its own."""
        if len(self.lengths) == 1:
            return [min(count, self.lengths[0])]
        stops = torch.tensor(self.lengths, device=self.order.device).cumsum(0)
        owners = torch.bucketize(self.order[:count], stops, right=True)
        return torch.bincount(owners, minlength=len(self.lengths)).tolist()


PairRows = dict[Pair, PairedRows]
"""The paired rows of each pair of modalities."""


@dataclass
class DrawnPairs:
    """Rows (N,) of modalities a and b that are to be matched: the first `positives` are pairs, the others are not.

    The same on every rank: row n of rank r is r · (rows of a rank) + n.
    """

    a: str
    b: str
    rows_a: Tensor
    rows_b: Tensor
    positives: int


@dataclass
class LossTerms:
    """total (): what is minimised; terms: every unweighted term by name, what is logged."""

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor, weight: float) -> None:
        self.terms[name] = value
        self.total = self.total + weight * value


for result in (Aligned, PairedRows, DrawnPairs, LossTerms):
    register_dataclass(result)


class ProgressiveAlignment(nn.Module):
    """All pair terms of the loss. One temperature per pair, one shared codebook for all.

    Args:
        token_width: P, of the token embeddings.
        pairs: of modalities, in the order in which terms are summed.
    """

    def __init__(self, config: LossConfig, token_width: int, pairs: Iterable[Pair]) -> None:
        super().__init__()
        self.config = config
        self.pairs = tuple(pairs)
        names = [f"{a}_{b}" for a, b in self.pairs]
        self.contrastive: Any = nn.ModuleDict(
            {name: Contrastive(config.contrastive, config.temperature) for name in names}
        )
        self.filip: Any = nn.ModuleDict({name: LateInteraction(config.temperature) for name in names})
        self.code_match = CodeAgreement(SHARED_CODES, token_width)

    def clamp_scales(self) -> None:
        """Bring every learned scale back below its ceiling, in place, after an optimizer step."""
        for terms in (self.contrastive, self.filip):
            for term in terms.values():
                clamp_log_scale(term.log_scale)

    def rows(self, sides: Mapping[str, Aligned]) -> PairRows:
        """Sides by modality -> of every pair the rows of both that have a partner, where at least two have one.

        The two may be on different ranks.
        """
        group = world()
        found: PairRows = {}
        for a, b in self.pairs:
            if a in sides and b in sides:
                rows = paired_rows(sides[a], sides[b], group)
                if sum(rows.lengths) >= 2:
                    found[a, b] = rows
        return found

    def draw(
        self,
        sides: Mapping[str, Aligned],
        rows: PairRows,
        ids: Tensor,
        weights: LossWeights,
        draws: torch.Generator | None = None,
    ) -> list[DrawnPairs]:
        """Draw what is to be matched: one positive and two hard negatives for each of the first `itm_rows` samples.

        The negatives come from the whole batch, of all ranks: the larger it is, the harder they are.

        Args:
            sides: by modality.
            rows: of these, see `rows`.
            ids: image ids (B,).
            weights: the schedule's now.
            draws: on the CPU, in the same state on every rank; None draws from torch's own.
        """
        if self.config.itm <= 0:
            return []
        return [self.draw_pair(pair, sides, rows[pair], ids, draws) for pair in rows if weights.itm[pair] > 0]

    @torch.no_grad()
    def draw_pair(
        self, pair: Pair, sides: Mapping[str, Aligned], rows: PairedRows, ids: Tensor, draws: torch.Generator | None
    ) -> DrawnPairs:
        a, b = pair
        x = sides[a]
        y = sides[b]
        count = self.config.itm_rows
        group = world()
        rank, _ = rank_and_size(group)
        i = rows.joined(rows.a + rank * len(x.present), group)
        j = rows.joined(rows.b + rank * len(y.present), group)
        of_rows = rows.joined(ids[x.sample_index[rows.a]], group)
        left = rows.joined(x.embedding[rows.a], group)
        right = rows.joined(y.embedding[rows.b], group)
        wrong_b, wrong_a = hard_negatives(left @ right.T, of_rows, self.contrastive[f"{a}_{b}"].scale, draws)
        few_a = i[:count]
        few_b = j[:count]
        rows_a = torch.cat([few_a, few_a, i[wrong_a[:count]]])
        rows_b = torch.cat([few_b, j[wrong_b[:count]], few_b])
        return DrawnPairs(a, b, rows_a, rows_b, len(few_a))

    def forward(self, sides: Mapping[str, Aligned], rows: PairRows, ids: Tensor, weights: LossWeights) -> LossTerms:
        """Sides by modality, their `rows`, image ids (B,), the schedule's weights now -> LossTerms without matching. A
        term of weight zero is not computed."""
        loss = LossTerms(ids.new_zeros((), dtype=torch.float32))
        for pair, pair_rows in rows.items():
            self.add_pair(loss, pair, sides, pair_rows, ids, weights)
        return loss

    def add_pair(
        self,
        loss: LossTerms,
        pair: Pair,
        sides: Mapping[str, Aligned],
        rows: PairedRows,
        ids: Tensor,
        weights: LossWeights,
    ) -> None:
        """Add one pair's terms but matching, over its `rows` of each side."""
        config = self.config
        name = f"{pair[0]}_{pair[1]}"
        x = sides[pair[0]]
        y = sides[pair[1]]
        i = rows.a
        j = rows.b
        of_rows = ids[x.sample_index[i]]
        if weights.contrastive[pair] > 0:
            value = self.contrastive[name](x.embedding[i], y.embedding[j], of_rows)
            loss.add(f"contrastive/{name}", value, weights.contrastive[pair])
        if weights.fine[pair] > 0 and config.code_match > 0:
            value = self.code_match(x.tokens[i], x.mask[i], y.tokens[j], y.mask[j], of_rows)
            loss.add(f"code_match/{name}", value, weights.fine[pair] * config.code_match)
        if weights.fine[pair] > 0 and config.filip > 0:
            # Batches come in random order, so the first rows are a random sample.
            lengths = rows.first(config.filip_rows)
            rank, _ = rank_and_size(world())
            few = slice(lengths[rank])
            parts = (x.tokens[i[few]], x.mask[i[few]], y.tokens[j[few]], y.mask[j[few]], of_rows[few])
            value = self.filip[name](*(gather_uneven(part, world(), lengths) for part in parts))
            loss.add(f"filip/{name}", value, weights.fine[pair] * config.filip)

    def add_matching(
        self, loss: LossTerms, drawn: Sequence[DrawnPairs], logits: Sequence[Tensor], weights: LossWeights
    ) -> None:
        """Add the matching terms of what `draw` gave; logits (N,) of each."""
        for d, of_pair in zip(drawn, logits, strict=True):
            value = matching_loss(of_pair[: d.positives], of_pair[d.positives :])
            loss.add(f"itm/{d.a}_{d.b}", value, weights.itm[d.a, d.b] * self.config.itm)


def paired_rows(a: Aligned, b: Aligned, group: Group = None) -> PairedRows:
    """Rows of each side that belong to one sample, both present; one of the sides has a row for each sample.

    All samples once before any sample twice: the first pairs are of different samples.
    """
    longer, shorter = (b, a) if len(b.sample_index) >= len(a.sample_index) else (a, b)
    row_of = torch.empty_like(shorter.sample_index)
    row_of[shorter.sample_index] = torch.arange(len(shorter.sample_index), device=row_of.device)
    rank, ranks = rank_and_size(group)
    size = len(longer.sample_index)
    # The key of a row: how often its sample came before, then its place among the rows of all ranks.
    place = torch.arange(size, device=row_of.device) + rank * size
    keys, j = (recurrence(longer.sample_index) * (ranks * size) + place).sort()
    i = row_of[longer.sample_index[j]]
    kept = shorter.present[i] & longer.present[j]
    i = i[kept]
    j = j[kept]
    lengths = lengths_over_ranks(i, group)
    order = gather_uneven(keys[kept], group, lengths).argsort()
    if longer is b:
        return PairedRows(i, j, lengths, order)
    return PairedRows(j, i, lengths, order)


def recurrence(samples: Tensor) -> Tensor:
    """samples (N,) int64 -> (N,) int64: how many of the rows before belong to the same sample."""
    ordered, rows = samples.sort(stable=True)
    since = torch.arange(len(samples), device=samples.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(samples).scatter_(0, rows, since)
