"""Texts written by a model: many at once, each with a prefix of its own and beside a condition of its own.

A finished text gives its slot of the cache to the next one (continuous batching, Yu et al. 2022, "Orca"), so that a
long text holds up none of the others.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from kernels.collectives import Group, from_rank
from kernels.errors import UserError
from mm.infer.decoding import Decoding, check_finite, choose, drawn_by
from mm.model.cache import NewTokens
from mm.model.causal import Condition
from mm.model.writer import Writer

SLOTS = 32
"""Texts that are written side by side."""


@dataclass
class Text:
    """One text while it is written.

    Args:
        number: its place among all that are asked for.
        ids: the start token, its prefix, and what was written so far.
        prefix: how many of them were given.
        beside: what it is written beside, of one that joined later; the others' is the condition of all.
    """

    number: int
    ids: list[int]
    prefix: int
    draws: torch.Generator = field(default_factory=torch.Generator)
    beside: Condition | None = None

    @property
    def written(self) -> list[int]:
        """What was written."""
        return self.ids[self.prefix :]


@dataclass(frozen=True)
class Joining:
    """Texts that begin while others are written, and each text as soon as it stands.

    Args:
        more: is asked between two tokens how many more begin, with how many may: a prefix, and the condition of one
            sequence that it is written beside, for each.
        ended: is called with the number of a text and the ids that were written; numbers go on from those of the texts
            that were there at first, in the order in which others join.
    """

    more: Callable[[int], Sequence[tuple[Sequence[int], Condition | None]]]
    ended: Callable[[int, list[int]], None]


class Generation:
    """Write texts with one cache.

    Args:
        writer: of the model.
        stops: ids of tokens that end a text.
        decoding: how tokens are chosen.
        slots: how many texts are written side by side.
        told: is called with the number of a text and its ids, its prefix included, after each token that is added to
            it; of beams it is not.
        joining: texts that come later, which beams cannot be beside; None for none.
        together: processes that divide the model, all of which write all texts; None for one that has it whole.
    """

    def __init__(
        self,
        writer: Writer,
        stops: Sequence[int],
        decoding: Decoding,
        slots: int = SLOTS,
        told: Callable[[int, list[int]], None] | None = None,
        joining: Joining | None = None,
        together: Group = None,
    ) -> None:
        self.writer = writer
        self.stops = set(stops)
        self.decoding = decoding
        self.slots = slots
        self.told = told
        self.joining = joining
        self.together = together

    @torch.inference_mode()
    def __call__(self, prefixes: Sequence[Sequence[int]], condition: Condition | None) -> list[list[int]]:
        """Write one text for each prefix.

        Args:
            prefixes: of N texts, ids that begin with the start token.
            condition: N sequences, or None.

        Returns:
            the ids that were written behind each prefix, without the one that ended it; last those of texts that
            joined.

        Raises:
            ValueError: a prefix is empty or leaves no room in the context, or logits are not finite.
        """
        texts = [self._begun(number, prefix) for number, prefix in enumerate(prefixes)]
        self.written = self.writer.written()
        if self.decoding.beams > 1:
            return [self._search(text, _rows(condition, [text.number])) for text in texts]
        waiting = deque(texts)
        active: dict[int, Text] = {}
        self.cache = self.writer.cache(self.slots if self.joining is not None else min(self.slots, len(texts)))
        self.beside = _rows(condition, [0] * self.cache.slots)
        while waiting or active:
            free = [slot for slot in range(self.cache.slots) if slot not in active]
            if self.joining is not None and len(free) > len(waiting):
                for prefix, beside in self.joining.more(len(free) - len(waiting)):
                    texts.append(replace(self._begun(len(texts), prefix), beside=beside))
                    waiting.append(texts[-1])
            for run in neighbours(free[: len(waiting)]):
                self._admit(run, [waiting.popleft() for _ in run], active, condition)
            if active:
                self._step(active)
        return [text.written for text in texts]

    def _begun(self, number: int, prefix: Sequence[int]) -> Text:
        if not prefix:
            raise UserError(f"text {number} has no first token to go on from")
        context = self.writer.causal.context
        if len(prefix) >= context:
            raise UserError(f"prefix {number} has {len(prefix)} tokens, which fill the model's context of {context}")
        return Text(number, list(prefix), len(prefix), drawn_by(self.decoding, number))

    def _admit(self, slots: list[int], texts: list[Text], active: dict[int, Text], condition: Condition | None) -> None:
        """Read the prefixes of texts into empty slots beside each other, and write the first token of each."""
        beside = _beside(texts, condition)
        for slot, text in zip(slots, texts, strict=True):
            self.cache.clear(slot)
            active[slot] = text
        if self.beside is not None and beside is not None:
            for held, new in zip(tree_leaves(self.beside), tree_leaves(beside), strict=True):
                held[slots[0] : slots[-1] + 1] = new
        ids = [text.ids for text in texts]
        logits = self._read(ids, self.cache.new([len(row) for row in ids], slots[0]), beside)
        self._append(active, {slot: row for row, slot in enumerate(slots)}, logits)

    def _step(self, active: dict[int, Text]) -> None:
        """Write one token of every active text."""
        used = range(max(active) + 1)  # slots behind the last one that is taken would be computed for nothing
        ids = [active[slot].ids[-1:] if slot in active else [] for slot in used]
        beside = None if self.beside is None else tree_map(lambda x: x[: len(used)], self.beside)
        logits = self._read(ids, self.cache.new([len(row) for row in ids]), beside)
        self._append(active, {slot: slot for slot in list(active)}, logits)

    def _append(self, active: dict[int, Text], rows: dict[int, int], logits: Tensor) -> None:
        """Choose the next token of the texts in some slots; finished ones leave theirs.

        rows: by slot the row of logits (B, V).
        """
        texts = [active[slot] for slot in rows]
        chosen = choose(logits[list(rows.values())], self.decoding, [text.draws for text in texts])
        tokens = self.writer.ids_of(torch.tensor(chosen, device=logits.device)).tolist()
        for slot, text, token in zip(rows, texts, tokens, strict=True):
            ended = token in self.stops
            if not ended:
                text.ids.append(token)
                if self.told is not None:
                    self.told(text.number, text.ids)
            if ended or self._is_full(text):
                del active[slot]
                if self.joining is not None:
                    self.joining.ended(text.number, text.written)

    def _is_full(self, text: Text) -> bool:
        return len(text.written) >= self.decoding.max_tokens or len(text.ids) >= self.writer.causal.context

    def _read(self, ids: Sequence[Sequence[int]], new: NewTokens, beside: Condition | None) -> Tensor:
        """Read new tokens, and give the logits (B, V) of the one behind the last of each row."""
        device = new.real.device
        width = new.real.shape[1]
        padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], device=device)
        out = self.writer.read(padded, new.real if new.is_padded else None, new, new.at, beside)
        new.keep()
        last = torch.tensor([max(len(row) - 1, 0) for row in ids], device=device)
        logits = self.writer.next_logits(out.x[torch.arange(len(ids), device=device), last], self.written)
        # Of experts elsewhere each process may round otherwise, and one that chose another token would wait for ever.
        from_rank(logits, 0, self.together)
        check_finite(logits[new.real[:, 0]], f"token {new.longest}")
        if self.writer.encoder.unknown_row is not None:
            logits[:, self.writer.encoder.unknown_row] = -torch.inf
        return logits

    def _search(self, text: Text, beside: Condition | None) -> list[int]:
        """Beam search: of all continuations of the best texts the best go on; the likeliest by token is returned."""
        beams = self.decoding.beams
        self.cache = self.writer.cache(beams)
        several = _rows(beside, [0] * beams)
        logits = self._read([text.ids] * beams, self.cache.new([text.prefix] * beams), several)
        scores = torch.full((beams,), -torch.inf)
        scores[0] = 0.0
        open_texts = [replace(text, ids=list(text.ids)) for _ in range(beams)]
        finished: list[tuple[float, list[int]]] = []
        unfinished: list[tuple[float, list[int]]] = []
        while True:
            total = scores[:, None] + logits.log_softmax(1).cpu()
            best = total.flatten().topk(min(2 * beams, total.numel()))
            sources = (best.indices // logits.shape[1]).tolist()
            tokens = self.writer.ids_of((best.indices % logits.shape[1]).to(logits.device)).tolist()
            continued: list[tuple[float, int, int]] = []
            for score, source, token in zip(best.values.tolist(), sources, tokens, strict=True):
                if token in self.stops:
                    written = open_texts[source].written
                    finished.append((score / (len(written) + 1), written))
                elif len(continued) < beams:
                    continued.append((score, source, token))
            open_texts = [replace(text, ids=[*open_texts[source].ids, token]) for _, source, token in continued]
            scores = torch.tensor([score for score, _, _ in continued])
            if len(finished) >= beams or self._is_full(open_texts[0]):
                for score, each in zip(scores.tolist(), open_texts, strict=True):
                    unfinished.append((score / len(each.written), each.written))
                return max(finished or unfinished)[1]
            self.cache.reorder([source for _, source, _ in continued])
            logits = self._read([t.ids[-1:] for t in open_texts], self.cache.new([1] * beams), several)


def neighbours(slots: Sequence[int]) -> list[list[int]]:
    """Ascending numbers, in runs that follow on each other."""
    runs: list[list[int]] = []
    for slot in slots:
        if runs and runs[-1][-1] == slot - 1:
            runs[-1].append(slot)
        else:
            runs.append([slot])
    return runs


def _beside(texts: Sequence[Text], condition: Condition | None) -> Condition | None:
    """What some texts are written beside, of all of which there is a condition or of none."""
    if all(text.beside is None for text in texts):
        return _rows(condition, [text.number for text in texts])
    parts = [text.beside or _rows(condition, [text.number]) for text in texts]
    return Condition.joined([part for part in parts if part is not None])


def _rows(condition: Condition | None, numbers: list[int]) -> Condition | None:
    """Some sequences of a condition."""
    if condition is None:
        return None
    return condition.rows(torch.tensor(numbers, device=condition.mask.device))
