"""The progressive alignment loss: named terms, weighted by the schedule, summed once.

L(t) = Σ_m λ_vq·L_vq(m) + Σ_p [ w_global(p,t)·L_global(p) + w_fine(p,t)·L_fine(p) + w_match(p,t)·L_match(p) ] +
λ_moe·L_moe

Of a pair p: L_global is the term `contrastive`; L_fine are `code_match` and `filip`; L_match is `itm`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from alignment.contrastive import Contrastive, clamp_log_scale
from alignment.fine_grained import CodeAgreement, LateInteraction
from alignment.matching import hard_negatives, matching_loss
from alignment.schedule import LossWeights, Pair
from kernels.collectives import Group, gather, rank_and_size, sum_over_ranks, world
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
    caption: Annotated[float, "[0, inf)"] = 1.0
    """Weight of writing captions, of a model that does."""
    continuation: Annotated[float, "[0, inf)"] = 0.0
    """Weight of writing captions beside nothing, each token from those before it alone: text is continued from text."""
    filip_rows: Annotated[int, "[2, inf)"] = 32
    """Samples per step on which late interaction is computed: it costs rows² token similarities, in detail_on_top 32 of
    each row."""
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
    """Of two modalities the rows a (N,), b (N,) of this rank, of one sample each; N is the same on every rank.

    real: (N,) bool, where both are present; these come first, all samples once before any twice.
    order (W·N,): which of the rows of all W ranks, joined in rank order, comes first, which second, as in one process
    that has all their samples. count (): how many of all are real.
    """

    a: Tensor
    b: Tensor
    real: Tensor
    order: Tensor
    count: Tensor

    def joined(self, x: Tensor, group: Group) -> Tensor:
        """x (N, ...) of this rank's rows -> (W·N, ...) of all ranks' rows in the order of one process."""
        rows = gather(x, group)
        return rows if group is None else rows[self.order]

    def first(self, x: Tensor, count: int, group: Group) -> Tensor:
        """The first `count` of all ranks' rows, which are among the first of each.

        Args:
            x: (n, ...), of the first n = min(count, N) rows of this rank.
            count: how many are asked for.
            group: of the ranks.

        Returns:
            (count, ...); fewer if there are no more.
        """
        rows = gather(x, group)
        if group is None:
            return rows
        first = self.order[:count]
        size = len(self.a)
        return rows[first // size * len(x) + first % size]


PairRows = dict[Pair, PairedRows]
"""The paired rows of each pair of modalities."""


@dataclass
class DrawnPairs:
    """Rows (N,) of modalities a and b that are to be matched: the first `positives` are pairs, the others are not.

    The same on every rank: row n of rank r is r · (rows of a rank) + n. real: (N,) bool, those that count: a batch may
    have fewer pairs, and a sample no negative.
    """

    a: str
    b: str
    rows_a: Tensor
    rows_b: Tensor
    positives: int
    real: Tensor


@dataclass
class LossTerms:
    """Every unweighted term by name, what is logged, and its weight in `total`."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: Tensor, weight: float) -> None:
        self.terms[name] = value
        self.weights[name] = weight

    @property
    def total(self) -> Tensor:
        """The weighted sum () of all terms: what is minimised."""
        return self.total_by(list(self.weights.values()))

    def total_by(self, weights: Tensor | list[float]) -> Tensor:
        """The sum () under other weights (n,), in the order of the terms."""
        values = list(self.terms.values())
        if isinstance(weights, Tensor):
            return (torch.stack(values) * weights).sum()
        return torch.stack(torch._foreach_mul(values, weights)).sum()


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
        names = [name_of(pair) for pair in self.pairs]
        self.contrastive: Any = nn.ModuleDict(
            {name: Contrastive(config.contrastive, config.temperature) for name in names}
        )
        self.filip: Any = nn.ModuleDict({name: LateInteraction(config.temperature) for name in names})
        self.code_match = CodeAgreement(SHARED_CODES, token_width)

    def clamp_scales(self, highest: float | None = None) -> None:
        """Bring every learned scale back below its ceiling, in place, after an optimizer step.

        Args:
            highest: the temperature that no contrastive term may exceed; None for any.
        """
        for term in self.contrastive.values():
            clamp_log_scale(term.log_scale, highest)
        for term in self.filip.values():
            clamp_log_scale(term.log_scale)

    def term_weights(self, weights: LossWeights) -> dict[str, float]:
        """The schedule's weights now -> of every term of a pair that has one, by name, its weight in the sum."""
        config = self.config
        found = {}
        for pair in self.pairs:
            factors = {
                "contrastive": weights.contrastive[pair],
                "code_match": weights.fine[pair] * config.code_match,
                "filip": weights.fine[pair] * config.filip,
                "itm": weights.itm[pair] * config.itm,
            }
            for kind, weight in factors.items():
                if weight > 0:
                    found[f"{kind}/{name_of(pair)}"] = weight
        return found

    def caption_weights(self, weights: LossWeights) -> dict[str, float]:
        """The same of writing captions: `caption/<modality>` of each that is paired with text, from when it is, and
        `continuation` of text alone, always."""
        found = {}
        for a, b in self.pairs:
            weight = weights.contrastive[a, b] * self.config.caption
            if b == "text" and weight > 0:
                found[f"caption/{a}"] = weight
        if self.config.continuation > 0:
            found["continuation"] = self.config.continuation
        return found

    def rows(self, sides: Mapping[str, Aligned]) -> PairRows:
        """Sides by modality -> of every pair the rows of both that belong together. The two may be on different
        ranks."""
        group = world()
        found: PairRows = {}
        for a, b in self.pairs:
            if a in sides and b in sides:
                found[a, b] = paired_rows(sides[a], sides[b], group)
        return found

    def draw(
        self,
        sides: Mapping[str, Aligned],
        rows: PairRows,
        ids: Tensor,
        weights: Mapping[str, float],
        draws: torch.Generator | None = None,
    ) -> list[DrawnPairs]:
        """Draw what is to be matched: one positive and two hard negatives for each of the first `itm_rows` samples.

        The negatives come from the whole batch, of all ranks: the larger it is, the harder they are.

        Args:
            sides: by modality.
            rows: of these, see `rows`.
            ids: image ids (B,).
            weights: by name, see `term_weights`.
            draws: in the same state on every rank; None draws from torch's own of the CPU.
        """
        drawn = []
        for pair, pair_rows in rows.items():
            if f"itm/{name_of(pair)}" in weights:
                drawn.append(self.draw_pair(pair, sides, pair_rows, ids, draws))
        return drawn

    @torch.no_grad()
    def draw_pair(
        self, pair: Pair, sides: Mapping[str, Aligned], rows: PairedRows, ids: Tensor, draws: torch.Generator | None
    ) -> DrawnPairs:
        a, b = pair
        x = sides[a]
        y = sides[b]
        group = world()
        rank, _ = rank_and_size(group)
        i = rows.joined(rows.a + rank * len(x.present), group)
        j = rows.joined(rows.b + rank * len(y.present), group)
        of_rows = rows.joined(ids[x.sample_index[rows.a]], group)
        real = rows.joined(rows.real, group)
        left = rows.joined(x.embedding[rows.a], group)
        right = rows.joined(y.embedding[rows.b], group)
        scale = self.contrastive[name_of(pair)].scale
        wrong = hard_negatives(left @ right.T, of_rows, scale, draws, real)
        few = slice(self.config.itm_rows)
        rows_a = torch.cat([i[few], i[few], i[wrong.rows[few]]])
        rows_b = torch.cat([j[few], j[wrong.columns[few]], j[few]])
        counts = torch.cat([real[few], wrong.of_row[few], wrong.of_column[few]])
        # A pair that is alone has nothing to be told from.
        return DrawnPairs(a, b, rows_a, rows_b, len(real[few]), counts & (rows.count > 1))

    def forward(
        self,
        sides: Mapping[str, Aligned],
        rows: PairRows,
        ids: Tensor,
        weights: Mapping[str, float],
        still: Mapping[Pair, str] | None = None,
        on_top: bool = False,
    ) -> LossTerms:
        """All terms but matching. One without a weight is not computed; one of fewer than two pairs is 0.

        Args:
            sides: by modality.
            rows: of these, see `rows`.
            ids: image ids (B,).
            weights: by name, see `term_weights`.
            still: of a pair the modality through whose embedding the loss has no gradient; None for no pair.
            on_top: whether late interaction is added to the contrastive logits, which hold still under it.
        """
        loss = LossTerms()
        codes: dict[str, Tensor] = {}
        for pair in rows:
            if f"code_match/{name_of(pair)}" in weights:
                for m in pair:
                    if m not in codes:
                        codes[m] = self.code_match.distribution(sides[m].tokens, sides[m].mask)
        for pair, pair_rows in rows.items():
            of_rows = ids[sides[pair[0]].sample_index[pair_rows.a]]
            of_pair = {m: held_still(sides[m]) if still and still.get(pair) == m else sides[m] for m in pair}
            self.add_pair(loss, pair, of_pair, pair_rows, of_rows, weights, on_top)
            name = f"code_match/{name_of(pair)}"
            if name in weights:
                p, q = codes[pair[0]][pair_rows.a], codes[pair[1]][pair_rows.b]
                value = self.code_match(p, q, of_rows, pair_rows.real)
                loss.add(name, value * (pair_rows.count > 1), weights[name])
        return loss

    def add_pair(
        self,
        loss: LossTerms,
        pair: Pair,
        sides: Mapping[str, Aligned],
        rows: PairedRows,
        ids: Tensor,
        weights: Mapping[str, float],
        on_top: bool,
    ) -> None:
        """Add one pair's contrastive terms, over its `rows` of each side, of samples ids (N,); `on_top` as `forward`
        takes it."""
        name = name_of(pair)
        x = sides[pair[0]]
        y = sides[pair[1]]
        i = rows.a
        j = rows.b
        several = rows.count > 1

        def add(term: str, value: Tensor) -> None:
            loss.add(term, value * several, weights[term])

        if f"contrastive/{name}" in weights:
            value = self.contrastive[name](x.embedding[i], y.embedding[j], ids, rows.real)
            add(f"contrastive/{name}", value)
        if f"filip/{name}" in weights:
            # Batches come in random order, so the first rows are a random sample.
            count = self.config.filip_rows
            i = i[:count]
            j = j[:count]
            parts = (x.tokens[i], x.mask[i], y.tokens[j], y.mask[j], ids[:count], rows.real[:count])
            first = [rows.first(part, count, world()) for part in parts]
            logits = None
            if on_top:
                left, right = (rows.first(part.detach(), count, world()) for part in (x.embedding[i], y.embedding[j]))
                logits = self.contrastive[name].scale.detach() * (left @ right.T)
            add(f"filip/{name}", self.filip[name](*first, logits=logits))

    def add_matching(
        self, loss: LossTerms, drawn: Sequence[DrawnPairs], logits: Sequence[Tensor], weights: Mapping[str, float]
    ) -> None:
        """Add the matching terms of what `draw` gave; logits (N,) of each."""
        for d, of_pair in zip(drawn, logits, strict=True):
            name = f"itm/{name_of((d.a, d.b))}"
            value = matching_loss(of_pair[: d.positives], of_pair[d.positives :], d.real)
            loss.add(name, value, weights[name])


def held_still(side: Aligned) -> Aligned:
    """The same side, through whose embedding there is no gradient."""
    return replace(side, embedding=side.embedding.detach())


def name_of(pair: Pair) -> str:
    """A pair of modalities as the names of its terms end."""
    return "_".join(pair)


def paired_rows(a: Aligned, b: Aligned, group: Group = None) -> PairedRows:
    """Rows of each side that belong to one sample; one of the sides has a row for each sample.

    All samples once before any sample twice: the first pairs are of different samples. Those with an absent side come
    last.
    """
    longer, shorter = (b, a) if len(b.sample_index) >= len(a.sample_index) else (a, b)
    row_of = torch.empty_like(shorter.sample_index)
    row_of[shorter.sample_index] = torch.arange(len(shorter.sample_index), device=row_of.device)
    rank, ranks = rank_and_size(group)
    size = len(longer.sample_index)
    i = row_of[longer.sample_index]
    both = shorter.present[i] & longer.present
    # The key of a row: how often its sample came before, then its place among the rows of all ranks.
    place = torch.arange(size, device=row_of.device) + rank * size
    key = recurrence(longer.sample_index) * (ranks * size) + place
    keys, j = torch.where(both, key, key + size * ranks * size).sort()
    i = i[j]
    real = both[j]
    order = gather(keys, group).argsort()
    count = sum_over_ranks(real.sum(), group)
    if longer is b:
        return PairedRows(i, j, real, order, count)
    return PairedRows(j, i, real, order, count)


def recurrence(samples: Tensor) -> Tensor:
    """samples (N,) int64 -> (N,) int64: how many of the rows before belong to the same sample."""
    ordered, rows = samples.sort(stable=True)
    since = torch.arange(len(samples), device=samples.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(samples).scatter_(0, rows, since)
