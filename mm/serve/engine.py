"""What computes batches, in a process of its own: a finished run."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from kernels.errors import UserError
from mm.artifacts.run import quantize_run
from mm.batch import Batch
from mm.compress.quantize import WHOLE, QATConfig
from mm.infer.decoding import Decoding
from mm.infer.embedder import Embedder
from mm.infer.loading import load
from mm.infer.writing import JoiningTexts, TextWriter
from mm.model.causal import Condition
from mm.model.multimodal import MatchInput
from mm.serve.inputs import packed

MATCH = "match"
"""The kind of pairs of an image and a text."""
CAPTION = "caption/"
"""Before a modality: the kind of what is described."""
WORDS = "a red circle left of two small blue squares"
"""Of which warm-up makes texts."""
Told = Callable[[int, str], None]
"""Is called with an item's place in the batch and what is written of its caption so far."""


@dataclass(frozen=True)
class Continuing:
    """How a batch goes on while it is computed.

    Args:
        more: gives the payloads of items that join it now, at most as many as it is called with.
        ended: is called with an item's place in the batch and its result, as soon as that stands.
    """

    more: Callable[[int], Sequence[Any]]
    ended: Callable[[int, Any], None]


class Engine(Protocol):
    """Computes batches of one kind at a time."""

    kinds: Sequence[str]
    """That it computes."""
    digest: str
    """Equal for engines that give equal answers."""
    bits: int
    """Of a weight."""
    joins: Sequence[str]
    """Kinds whose batches others may join while they are computed."""

    def run(
        self, kind: str, payloads: Sequence[Any], told: Told, continuing: Continuing | None = None
    ) -> Sequence[Any]:
        """N payloads of a kind -> N results; last those of what joined, if it is of a kind that may be joined."""

    def examples(self) -> Iterator[tuple[str, Any]]:
        """A kind and a payload of it, for warm-up."""


@dataclass(frozen=True)
class ServeRun:
    """Builds the engine of a run, in the process that computes.

    Args:
        model: as `mm.load` takes it.
        device: as `mm.load` takes it.
        decoding: how captions are written.
        bits: of weights, see `load_in_bits`.
    """

    model: str
    device: str
    decoding: Decoding
    bits: Literal[4, 8] | None = None

    def __call__(self) -> "RunEngine":
        """Load the run."""
        return RunEngine(load_in_bits(self.model, self.device, self.bits), self.decoding)


class RunEngine:
    """A finished run: vectors (E,) float32 of texts, images and sounds; log-odds of pairs; captions.

    Args:
        embedder: of the run.
        decoding: how captions are written.
    """

    def __init__(self, embedder: Embedder, decoding: Decoding) -> None:
        self.embedder = embedder
        self.decoding = decoding
        self.digest = embedder.digest
        self.bits: int = WHOLE if embedder.run.compression is None else embedder.run.compression.weight_bits
        self.kinds: Sequence[str] = kinds_of(embedder)
        self.joins: Sequence[str] = [kind for kind in self.kinds if kind.startswith(CAPTION) and decoding.beams == 1]

    def run(
        self, kind: str, payloads: Sequence[Any], told: Told, continuing: Continuing | None = None
    ) -> Sequence[Any]:
        """N payloads -> N arrays (E,), log-odds or captions."""
        if kind == MATCH:
            return self._match(payloads)
        if kind.startswith(CAPTION):
            return self._write(kind.removeprefix(CAPTION), payloads, told, continuing)
        with torch.inference_mode():
            return list(self.embedder.vectors(kind, self._batch(kind, payloads)).float().cpu().numpy())

    def examples(self) -> Iterator[tuple[str, Any]]:
        """A text of some words, a grey image, a second of silence; what is made of them."""
        processor = self.embedder.processor
        rows: dict[str, Any] = {}
        if "text" in processor.encoders:
            words = processor.text([WORDS])
            rows["text"] = (words.inputs["text"][0].numpy(), words.masks["text"][0].numpy())
        if "image" in processor.encoders:
            grey = processor.images([np.full((64, 64, 3), 128, dtype=np.uint8)])
            rows["image"] = (grey.inputs["image"][0].numpy(), None)
        if "audio" in processor.encoders:
            silence = processor.audio([(np.zeros(16_000, dtype=np.float32), 16_000)])
            rows["audio"] = (silence.inputs["audio"][0].numpy(), silence.masks["audio"][0].numpy())
        for kind in self.kinds:
            if kind == MATCH:
                yield kind, (rows["image"], rows["text"])
            else:
                yield kind, rows[kind.removeprefix(CAPTION)]

    def _batch(self, modality: str, payloads: Sequence[Any]) -> Batch:
        batch = Batch(torch.arange(len(payloads)))
        batch.put(modality, *packed(payloads))
        return batch

    def _match(self, pairs: Sequence[Any]) -> list[float]:
        """Log-odds of N pairs."""
        model = self.embedder.run.model
        encoded = {}
        with torch.inference_mode():
            for modality, side in zip(("image", "text"), zip(*pairs, strict=True), strict=True):
                batch = self._batch(modality, side).to(self.embedder.run.device)
                encoded[modality] = model.encode(batch, modality, reconstruct=False)
            (logits,) = model.match([MatchInput("image", "text", encoded["image"], encoded["text"])]).logits
        return logits.float().cpu().tolist()

    def _write(self, modality: str, payloads: Sequence[Any], told: Told, continuing: Continuing | None) -> list[str]:
        run = self.embedder.run
        writer = TextWriter(run.model, self.embedder.processor.tokenizer)

        def condition(given: Sequence[Any]) -> Condition:
            return writer.condition([self._batch(modality, given).to(run.device)], modality)

        def more(most: int) -> list[Condition]:
            given = continuing.more(most) if continuing is not None else []
            if not given:
                return []
            read = condition(given)
            return [read.rows(torch.tensor([place])) for place in range(len(given))]

        joining = None if continuing is None else JoiningTexts(more, continuing.ended)
        return writer.write([""] * len(payloads), condition(payloads), self.decoding, told, joining)


def load_in_bits(model: str, device: str, bits: Literal[4, 8] | None) -> Embedder:
    """Load a run that is served.

    Args:
        model: as `mm.load` takes it.
        device: as `mm.load` takes it.
        bits: to which weights are rounded; None leaves them as they are stored, and so does what they are stored in.

    Raises:
        ValueError: it is no finished run, or is stored in other bits, which cannot be rounded again.
    """
    opened = load(model, device)
    if not isinstance(opened, Embedder):
        raise UserError(f"{model} is no finished run, which is what can be served")
    stored = opened.run.compression
    if bits is None or (stored is not None and stored.weight_bits == bits):
        return opened
    try:
        return Embedder(quantize_run(opened.run, QATConfig(weight_bits=bits)), model)
    except UserError as error:
        raise UserError(f"{model} cannot be served in {bits} bits: {error}") from error


def kinds_of(embedder: Embedder) -> tuple[str, ...]:
    """What an engine of a run computes."""
    kinds = list(embedder.modalities)
    if {"image", "text"} <= set(kinds):
        kinds.append(MATCH)
    if embedder.run.model.causal is not None:
        kinds += [f"{CAPTION}{modality}" for modality in ("image", "audio") if modality in embedder.modalities]
    return tuple(kinds)


def timed(engine: Engine, kind: str, payload: Any, size: int) -> tuple[float, float]:
    """Seconds of a batch of one and of a full one."""
    one = list(_timed(engine, kind, [payload]))
    full = list(_timed(engine, kind, [payload] * size))
    return min(one), min(full)


def _timed(engine: Engine, kind: str, payloads: list[Any]) -> Iterator[float]:
    """Seconds of two runs; the first one pays for what is made once."""
    for _ in range(2):
        started = time.perf_counter()
        engine.run(kind, payloads, lambda place, text: None)
        yield time.perf_counter() - started
