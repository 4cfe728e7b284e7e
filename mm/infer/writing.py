"""What an embedder writes: captions of images and of sounds, each continued from a prefix."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from encoders.tokenizer import Tokenizer
from kernels.collectives import Group
from kernels.errors import UserError
from mm.batch import Batch
from mm.infer.decoding import Decoding
from mm.infer.generation import Generation, Joining
from mm.model.causal import Condition
from mm.model.multimodal import MultimodalModel
from mm.model.writer import Writer


@dataclass(frozen=True)
class JoiningTexts:
    """Texts without a prefix that begin while others are written, and each text as soon as it stands.

    Args:
        more: gives what each of those is written beside that begin now, of one sequence each, at most as many as it is
            called with.
        ended: is called with the number of a text and all of it.
    """

    more: Callable[[int], Sequence[Condition]]
    ended: Callable[[int, str], None]


class TextWriter:
    """A model that writes text, with its tokenizer.

    Args:
        model: in evaluation mode.
        tokenizer: of its text encoder; None of a model that has none.
        together: processes that divide the model, all of which write all texts; None for one that has it whole.

    Raises:
        ValueError: the model does not write text, or its tokenizer has no start and end token.
    """

    def __init__(self, model: MultimodalModel, tokenizer: Tokenizer | None, together: Group = None) -> None:
        self.writer = Writer(model)
        assert tokenizer is not None  # whoever writes text has an encoder of it
        self.tokenizer = tokenizer
        self.together = together
        self.start, self.end = tokenizer.ends

    def write(
        self,
        prefixes: Sequence[str],
        condition: Condition | None,
        decoding: Decoding,
        told: Callable[[int, str], None] | None = None,
        joining: JoiningTexts | None = None,
    ) -> list[str]:
        """Write one text behind each prefix.

        Args:
            prefixes: N strings.
            condition: what each is written beside, or None.
            decoding: how.
            told: is called with the number of a text and what stands of it, after each token; of beams it is not.
            joining: texts that begin while these are written, not beside beams; None for none.

        Returns:
            N texts, their prefixes included; behind them what joined.

        Raises:
            ValueError: a prefix is too long, a stop token is none of the tokenizer's, or a condition is padding alone.
        """
        if condition is not None and not condition.attends.all():
            number = int((~condition.attends).nonzero()[0])
            raise UserError(f"input {number} has no real token to describe: leave it out")
        stops = [self.end]
        if decoding.stop is not None:
            stops.append(self.tokenizer.id_of(decoding.stop))
        begun = []
        for prefix in prefixes:
            begun.append([self.start, *self.tokenizer.word_ids(prefix)])

        def told_ids(number: int, ids: list[int]) -> None:
            if told is not None:
                told(number, self.tokenizer.decode(ids[1:]))

        later = None if joining is None else self._joining(joining, begun)
        generation = Generation(self.writer, stops, decoding, told=told_ids, joining=later, together=self.together)
        texts = []
        for before, after in zip(begun, generation(begun, condition), strict=True):
            texts.append(self.tokenizer.decode([*before[1:], *after]))
        return texts

    def _joining(self, joining: JoiningTexts, begun: list[list[int]]) -> Joining:
        """Texts that join, as ids; each is noted in `begun`."""

        def more(most: int) -> list[tuple[list[int], Condition | None]]:
            joined: list[tuple[list[int], Condition | None]] = []
            for beside in joining.more(most):
                begun.append([self.start])
                joined.append((begun[-1], beside))
            return joined

        def ended(number: int, ids: list[int]) -> None:
            joining.ended(number, self.tokenizer.decode([*begun[number][1:], *ids]))

        return Joining(more, ended)

    def condition(self, batches: Iterable[Batch], modality: str) -> Condition:
        """What is written beside: the rows of all batches, each of the modality alone."""
        with torch.inference_mode():
            return Condition.joined([self.writer.condition(batch, [modality]) for batch in batches])


def paired_prefixes(prefix: Any, count: int) -> list[str]:
    """A prefix for each of `count` texts: one string for all, or a list of as many.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(prefix, str):
        return [prefix] * count
    prefixes = list(prefix)
    for number, each in enumerate(prefixes):
        if not isinstance(each, str):
            raise UserError(f"prefix {number} is of type {type(each).__name__}, not a string")
    if len(prefixes) != count:
        raise UserError(f"{len(prefixes)} prefixes for {count} inputs: give one, or as many")
    return prefixes
