"""The modalities, a row each: everything about one that is not its encoder stands here.

A further modality is an encoder (a subclass of `encoders.Encoder` and its settings), a row, and a field of that name in
`mm.config.AlignConfig`.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from encoders import AudioEncoder, BottleneckConfig, Encoder, ImageEncoder, TextEncoder
from encoders.tokenizer import Tokenizer
from mm.batch import Batch
from mm.readers import AudioReader, ImageReader, Reader

Pair = tuple[str, str]
Probe = tuple[Tensor, Tensor | None]
PROBE_CAPTIONS = [
    "a small red circle is left of a striped square",
    "Two dogs run over wet grass!",
    "a sound, then silence",
]
PROBE_ROWS = len(PROBE_CAPTIONS)


def probe_images(config: Any) -> Probe:
    """Waves of colour (3, 3, S, S) uint8."""
    x = torch.linspace(0, 1, config.size)
    phase = torch.arange(3 * PROBE_ROWS).view(PROBE_ROWS, 3, 1, 1)
    waves = torch.sin(2 * math.pi * (x[:, None] * (phase + 1) + x[None, :] * (phase + 2)) + phase)
    return ((waves + 1) * 127.5).to(torch.uint8), None


def probe_audio(config: Any) -> Probe:
    """Tones (3, samples) float32."""
    t = torch.arange(int(config.seconds * config.sample_rate)) / config.sample_rate
    tones = torch.stack([0.5 * torch.sin(2 * math.pi * 220 * (i + 1) * t) for i in range(PROBE_ROWS)])
    return tones, torch.ones_like(tones, dtype=torch.bool)


def probe_text(config: Any) -> Probe:
    """Captions through the trunk's own tokenizer: (3, L) int64."""
    return Tokenizer(config.trunk, config.max_tokens)(PROBE_CAPTIONS)


@dataclass(frozen=True)
class Modality:
    """One row.

    encoder: its class, built from its settings. reader: settings of the encoder -> its Reader; None for text, which the
    tokenizer of its trunk reads, a row for each caption. ids: the image ids of its vectors in embeddings.npz.
    probe: settings -> inputs and mask of three fixed samples, by which a run's behaviour is fingerprinted.
    pairs: the pairs that it brings along, and the stage of the schedule in which each comes in.
    rows_at_once: what one thread reads at a time where features of a frozen trunk are cached.
    """

    encoder: type[Encoder]
    reader: Callable[[Any], Reader] | None
    ids: str
    probe: Callable[[Any], Probe]
    pairs: Mapping[Pair, int] = field(default_factory=dict)
    rows_at_once: int = 8

    @property
    def chances(self) -> int:
        """Numbers in [0, 1) that training draws for each of its samples."""
        return getattr(self.reader, "chances", 0)


MODALITIES: dict[str, Modality] = {
    "image": Modality(ImageEncoder, ImageReader, "image_ids", probe_images),
    "audio": Modality(
        AudioEncoder,
        AudioReader,
        "audio_image_ids",
        probe_audio,
        {("audio", "text"): 2, ("image", "audio"): 3},
    ),
    "text": Modality(
        TextEncoder,
        None,
        "caption_image_ids",
        probe_text,
        {("image", "text"): 1},
        rows_at_once=256,  # captions are cheap, and read by length, see encoders.trunks.by_length
    ),
}


def pairs_of(modalities: Collection[str]) -> dict[Pair, int]:
    """Every pair of these modalities that is aligned, with the stage in which it comes in, in the order of stages."""
    found: dict[Pair, int] = {}
    for row in MODALITIES.values():
        for pair, stage in row.pairs.items():
            if pair[0] in modalities and pair[1] in modalities:
                found[pair] = stage
    return dict(sorted(found.items(), key=lambda item: item[1]))


def noun(modality: str) -> str:
    """What a sample of a modality has, or lacks: an image, audio, captions."""
    return "captions" if modality == "text" else modality


def build_encoder(
    modality: str, config: Any, bottleneck: BottleneckConfig, width: int, vocabulary: Tensor | None = None
) -> Encoder:
    """The encoder of a modality in front of a backbone of `width`; vocabulary (V,) is a scratch text trunk's."""
    kind: Any = MODALITIES[modality].encoder
    if kind.reads_vocabulary:
        return kind(config, bottleneck, width, vocabulary)
    return kind(config, bottleneck, width)


def build_readers(encoders: Mapping[str, Any]) -> dict[str, Reader]:
    """The reader of each modality that has one; encoders: the settings of each modality's encoder."""
    readers: dict[str, Reader] = {}
    for modality, config in encoders.items():
        build = MODALITIES[modality].reader
        if build is not None:
            readers[modality] = build(config)
    return readers


def probe_batch(encoders: Mapping[str, Any]) -> Batch:
    """The three fixed samples; encoders: the settings of each modality's encoder."""
    batch = Batch(torch.arange(PROBE_ROWS))
    for modality, config in encoders.items():
        inputs, mask = MODALITIES[modality].probe(config)
        batch.put(modality, inputs, mask)
    return batch
