"""PIL images, waveforms and strings -> Batch: what a run's dataset does, for inputs that belong to none."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from encoders.text import Tokenizer
from mm.batch import Batch, Sample
from mm.data.collate import Collate
from mm.data.media import decode_audio, decode_image
from mm.modalities import build_readers

ImageInput = Image.Image | str | Path | np.ndarray
"""A PIL image, the path of one, or pixels (H, W, 3) uint8."""
AudioInput = tuple[np.ndarray, int] | str | Path
"""A mono waveform (S,) in [-1, 1] with its rate in hertz, or the path of an audio file."""


class Processor:
    """Raw inputs of any modality that a run reads -> Batch, read as the run's evaluation reads them.

    Args:
        encoders: settings of each modality's encoder, see `mm.config.encoders_of`.
    """

    def __init__(self, encoders: Mapping[str, Any]) -> None:
        self.encoders = encoders
        self.readers = build_readers(encoders)
        tokenizer = None
        if "text" in encoders:
            tokenizer = Tokenizer(encoders["text"].trunk, encoders["text"].max_tokens)
        self.collate = Collate(self.readers, tokenizer)

    def images(self, images: Sequence[ImageInput]) -> Batch:
        """Raises ValueError on a file or an array that is no image."""
        samples = [Sample("", number, image=as_image(image)) for number, image in enumerate(images)]
        return self.read("image", samples)

    def audio(self, clips: Sequence[AudioInput]) -> Batch:
        """Raises ValueError on a file that does not decode, or a waveform that is not one row of finite numbers."""
        samples = []
        for number, clip in enumerate(clips):
            waveform, rate = as_waveform(clip)
            samples.append(Sample("", number, audio=waveform, sample_rate=rate))
        return self.read("audio", samples)

    def text(self, captions: Sequence[str]) -> Batch:
        self._require("text")
        return self.collate.text(list(captions), torch.arange(len(captions)))

    def read(self, modality: str, samples: Sequence[Sample]) -> Batch:
        """Samples by the reader of a modality -> Batch of it alone."""
        self._require(modality)
        reader = self.readers[modality]
        rows: list[np.ndarray | None] = []
        for sample in samples:
            decoded = reader.decode(sample)
            rows.append(None if decoded is None else reader.evaluate(decoded))
        batch = Batch(torch.arange(len(samples)))
        inputs, mask = reader.stack(rows)
        batch.put(modality, inputs, mask)
        batch.present[modality] = present(rows)
        return batch

    def _require(self, modality: str) -> None:
        if modality not in self.encoders:
            raise ValueError(f"the run has no encoder of {modality}, only of {', '.join(self.encoders)}")


def present(rows: Sequence[np.ndarray | None]) -> Tensor:
    """(N,) bool: which rows are there."""
    return torch.tensor([row is not None for row in rows])


def as_image(image: ImageInput) -> Image.Image:
    """Raises ValueError on a file or an array that is no image, FileNotFoundError on a path that is not there."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"an image array must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
        return Image.fromarray(image)
    return decode_image(Path(image).read_bytes(), str(image))


def as_waveform(clip: AudioInput) -> tuple[np.ndarray, int]:
    """A mono waveform (S,) float32 and its rate in hertz. Raises as `as_image` does."""
    if isinstance(clip, str | Path):
        return decode_audio(Path(clip).read_bytes(), str(clip))
    waveform = np.asarray(clip[0], dtype=np.float32)
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise ValueError(f"a waveform must be one row (S,) of finite numbers, got shape {waveform.shape}")
    return waveform, clip[1]
