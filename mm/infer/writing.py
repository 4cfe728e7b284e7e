"""What an embedder writes: captions of images and of sounds, each continued from a prefix."""

from collections.abc import Sequence
from typing import Any

import torch

from encoders.tokenizer import Tokenizer
from kernels.errors import UserError
from mm.batch import Batch
from mm.infer.decoding import Decoding
from mm.infer.generation import Generation
from mm.model.causal import Condition
from mm.model.multimodal import MultimodalModel
from mm.model.writer import Writer


class TextWriter:
    """A model that writes text, with its tokenizer.

    Args:
        model: in evaluation mode.
        tokenizer: of its text encoder.

    Raises:
        ValueError: the model does not write text, or its tokenizer has no start and end token.
    """

    def __init__(self, model: MultimodalModel, tokenizer: Tokenizer) -> None:
        self.writer = Writer(model)
        self.tokenizer = tokenizer
        self.start, self.end = tokenizer.ends

    def write(self, prefixes: Sequence[str], condition: Condition | None, decoding: Decoding) -> list[str]:
        """Write one text behind each prefix.

        Args:
            prefixes: N strings.
            condition: what each is written beside, or None.
            decoding: how.

        Returns:
            N texts, their prefixes included.

        Raises:
            ValueError: a prefix is too long, or a stop token is none of the tokenizer's.
        """
        stops = [self.end]
        if decoding.stop is not None:
            stops.append(self.tokenizer.id_of(decoding.stop))
        begun = []
        for prefix in prefixes:
            begun.append([self.start, *self.tokenizer.word_ids(prefix)])
        written = Generation(self.writer, stops, decoding)(begun, condition)
        texts = []
        for before, after in zip(begun, written, strict=True):
            texts.append(self.tokenizer.decode([*before[1:], *after]))
        return texts

    def condition(self, batches: Sequence[Batch], modality: str) -> Condition:
        """What is written beside: the rows of all batches, each of the modality alone."""
        found: list[Condition] = []
        with torch.inference_mode():
            for batch in batches:
                found.append(self.writer.condition(batch, [modality]))
        layers = range(len(found[0].keys))
        keys = [torch.cat([part.keys[layer] for part in found]) for layer in layers]
        values = [torch.cat([part.values[layer] for part in found]) for layer in layers]
        return Condition(
            keys, values, torch.cat([part.mask for part in found]), torch.cat([part.attends for part in found])
        )


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
