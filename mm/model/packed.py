"""All tokens of all streams in one tensor: what a layer does to each token alone is one operation for all of them.

Letters: N tokens of all streams, B samples and T tokens of one stream, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

from kernels.padding import host_reads, real_rows


@dataclass
class Stream:
    """One modality inside the backbone.

    Args:
        x: tokens (B, T, D).
        mask: (B, T) bool, True where a token is real.
        term_mask: (B, T) bool, the tokens that belong to a term, or None.
    """

    x: Tensor
    mask: Tensor
    term_mask: Tensor | None = None


Reading = dict[str, Stream]
"""Streams by modality, of samples that are read together; readings do not see each other."""


@dataclass(frozen=True)
class Span:
    """Where one stream stands among all tokens: `rows` samples of `length` tokens from `start` on."""

    start: int
    rows: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.size

    @property
    def size(self) -> int:
        """How many tokens it has."""
        return self.rows * self.length


@dataclass
class Look:
    """Who attends to whom: the tokens of one span to those of others, sample by sample.

    Args:
        queries: of B samples and T tokens.
        context: of B samples each, S tokens together.
        mask: (B, S) bool, the context tokens that count; all of them where none is real, so that a softmax is defined.
            None where all are known to be real.
        attends: (B, 1) bool, the samples that have a real token in their context; None where all are known to.
        term_mask: (B, S) bool, the context tokens that belong to a term; None where none does.
    """

    queries: Span
    context: list[Span]
    mask: Tensor | None
    attends: Tensor | None
    term_mask: Tensor | None = None

    def attending(self, x: Tensor) -> Tensor:
        """(B·T, 1) bool beside x, the queries that have a real token in their context."""
        if self.attends is None:
            return torch.ones(self.queries.size, 1, dtype=torch.bool, device=x.device)
        return self.attends.expand(-1, self.queries.length).reshape(-1, 1)

    def joined(self, parts: Mapping[Span, Tensor]) -> Tensor:
        """What `cut` made of all tokens -> (B, S, ...) of the context's."""
        found = [parts[span] for span in self.context]
        return found[0] if len(found) == 1 else torch.cat(found, 1)


@dataclass
class Layout:
    """Who stands where among all tokens, and who sees whom.

    Args:
        alone: every span to itself.
        across: every span to the other modalities of its reading; empty where nothing is fused.
        rows: (n,) int64, the real tokens, see `kernels.padding.real_rows`; None where padding is computed.
        real: (N,) bool, where padding is computed; None where it is dropped, or there is none.
        modality: (n,) int64, the number of the modality of each token, of the real ones where padding is dropped; None
            where nothing is counted.
    """

    alone: list[Look]
    across: list[Look]
    rows: Tensor | None
    real: Tensor | None
    modality: Tensor | None


for result in (Stream, Span, Look, Layout):
    register_dataclass(result)


def pack(readings: Sequence[Reading], modalities: Sequence[str], fuse: bool) -> tuple[Tensor, Layout]:
    """Put all tokens of all streams one after another, those of one modality together.

    Args:
        readings: of streams (B, T, D); B may differ between readings.
        modalities: the names of all, in the order of their numbers.
        fuse: whether the modalities of a reading attend to each other.

    Returns:
        tokens (N, D), and where they stand.
    """
    spans = spans_of(readings, modalities)
    streams = [readings[reading][m] for reading, m in spans]
    x = torch.cat([stream.x.flatten(0, 1) for stream in streams])
    mask = torch.cat([stream.mask.flatten() for stream in streams])
    numbers = []
    across = []
    for (reading, m), span in spans.items():
        others = [name for name in readings[reading] if name != m]
        numbers.append(mask.new_full((span.size,), modalities.index(m), dtype=torch.int64))
        if fuse and others:
            context = [spans[reading, name] for name in others]
            across.append(look(span, context, [readings[reading][name] for name in others]))
    modality = torch.cat(numbers)
    rows = real_rows(mask)
    alone = merged_looks(spans, streams)
    if rows is None:
        return x, Layout(alone, across, None, mask, modality)
    return x, Layout(alone, across, rows, None, modality[rows])


def unpack(x: Tensor, readings: Sequence[Reading], modalities: Sequence[str]) -> list[Reading]:
    """The readings that `pack` was given, with their tokens from x (N, D)."""
    spans = spans_of(readings, modalities)
    parts = cut(x, list(spans.values()))
    found = []
    for number, reading in enumerate(readings):
        found.append({m: replace(stream, x=parts[spans[number, m]]) for m, stream in reading.items()})
    return found


def cut(x: Tensor, spans: Sequence[Span]) -> dict[Span, Tensor]:
    """x (N, ...) of all tokens -> (B, T, ...) of each span, in one operation, whose backward is one too.

    spans: in their order, none over another.
    """
    sizes = []
    places = {}
    stop = 0
    for span in spans:
        if span.start > stop:
            sizes.append(span.start - stop)
        places[span] = len(sizes)
        sizes.append(span.size)
        stop = span.stop
    if stop < len(x):
        sizes.append(len(x) - stop)
    pieces = x.split(sizes)
    return {span: pieces[place].unflatten(0, (span.rows, span.length)) for span, place in places.items()}


def spans_in(looks: Sequence[Look]) -> list[Span]:
    """All spans that look or are looked at, in their order."""
    found = set()
    for look in looks:
        found.update([look.queries, *look.context])
    return sorted(found, key=lambda span: span.start)


def spans_of(readings: Sequence[Reading], modalities: Sequence[str]) -> dict[tuple[int, str], Span]:
    """By number of a reading and modality where each stream stands, in their order."""
    spans = {}
    start = 0
    for m in modalities:
        for number, reading in enumerate(readings):
            if m in reading:
                rows, length = reading[m].mask.shape
                spans[number, m] = Span(start, rows, length)
                start = spans[number, m].stop
    return spans


def merged_looks(spans: dict[tuple[int, str], Span], streams: Sequence[Stream]) -> list[Look]:
    """Every stream to itself: neighbours of one length, as those of one modality are, in one look."""
    groups: list[list[tuple[Span, Stream]]] = []
    for span, stream in zip(spans.values(), streams, strict=True):
        if not groups or groups[-1][0][0].length != span.length:
            groups.append([])
        groups[-1].append((span, stream))
    looks = []
    for group in groups:
        first, _ = group[0]
        whole = Span(first.start, sum(span.rows for span, _ in group), first.length)
        mask = torch.cat([stream.mask for _, stream in group])
        term_mask = joined_term_mask([stream for _, stream in group], 0)
        looks.append(masked_look(whole, [whole], mask, term_mask))
    return looks


def look(queries: Span, context: list[Span], streams: list[Stream]) -> Look:
    """A span to others, whose streams are given."""
    mask = torch.cat([stream.mask for stream in streams], 1)
    return masked_look(queries, context, mask, joined_term_mask(streams, 1))


def masked_look(queries: Span, context: list[Span], mask: Tensor, term_mask: Tensor | None) -> Look:
    """mask (B, S) bool, True where a token of the context is real."""
    if host_reads(mask) and bool(mask.all()):
        return Look(queries, context, None, None, term_mask)
    some = mask.any(1, keepdim=True)
    if host_reads(mask) and bool(some.all()):
        return Look(queries, context, mask, None, term_mask)
    return Look(queries, context, mask | ~some, some, term_mask)


def joined_term_mask(streams: Sequence[Stream], dim: int) -> Tensor | None:
    """Term masks (B, T) of several streams, one after another along a dimension.

    Returns:
        bool, False along a stream without a term mask; None where no stream has one.
    """
    if all(stream.term_mask is None for stream in streams):
        return None
    masks = []
    for stream in streams:
        mask = stream.term_mask
        masks.append(torch.zeros_like(stream.mask) if mask is None else mask)
    return torch.cat(masks, dim)
