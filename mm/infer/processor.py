"""PIL images, waveforms and strings -> Batch: what a run's dataset does, for inputs that belong to none."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from encoders.tokenizer import Tokenizer
from kernels.errors import UserError
from mm.batch import Batch, Sample
from mm.data.collate import Collate
from mm.data.media import decode_audio, decode_image, pixels_of
from mm.modalities import build_readers
from mm.readers import Row

ImageInput = Image.Image | str | Path | np.ndarray | Tensor
"""A PIL image, the path of one, or pixels: an array (H, W, 3) or a tensor (3, H, W), uint8."""
AudioInput = tuple[np.ndarray, int] | str | Path
"""A mono waveform (S,) in [-1, 1] with its rate in hertz, or the path of an audio file."""


class Processor:
    """Raw inputs of any modality that a run reads -> Batch, read as the run's evaluation reads them.

    Args:
        encoders: settings of each modality's encoder by name, see `mm.config.encoders_of`.
    """

    def __init__(self, encoders: Mapping[str, Any]) -> None:
        self.encoders = encoders
        self.readers = build_readers(encoders)
        self.tokenizer: Tokenizer | None = None
        if "text" in encoders:
            text = encoders["text"]
            self.tokenizer = Tokenizer(text.trunk, text.max_tokens)
        self.collate = Collate(self.readers, self.tokenizer)

    def images(self, images: Sequence[ImageInput]) -> Batch:
        """Read images.

        Args:
            images: N PIL images, paths, or pixels: arrays (H, W, 3) or tensors (3, H, W), uint8.

        Returns:
            Batch with inputs["image"] (N, 3, size, size) uint8.

        Raises:
            ValueError: a file or an array is no image, or the run reads no images.
            FileNotFoundError: a path does not exist.
        """
        samples = [Sample("", number, image=as_image(image)) for number, image in enumerate(images)]
        return self.read("image", samples)

    def audio(self, clips: Sequence[AudioInput]) -> Batch:
        """Read audio clips.

        Args:
            clips: N paths, or pairs of a mono waveform (S,) in [-1, 1] and its rate in hertz.

        Returns:
            Batch with inputs["audio"] (N, S) float32 at the run's rate, masks["audio"] (N, S) bool.

        Raises:
            ValueError: a file does not decode, a waveform is not one row of finite numbers, or the run reads no audio.
            FileNotFoundError: a path does not exist.
        """
        samples = []
        for number, clip in enumerate(clips):
            waveform, rate = as_waveform(clip)
            samples.append(Sample("", number, audio=waveform, sample_rate=rate))
        return self.read("audio", samples)

    def text(self, captions: Sequence[str]) -> Batch:
        """Tokenize captions.

        Args:
            captions: N strings.

        Returns:
            Batch with inputs["text"] (N, L) int64 and masks["text"] (N, L) bool.

        Raises:
            ValueError: the run reads no text.
        """
        self._require("text")
        numbers = torch.arange(len(captions))
        # A fresh one: what keeps the tokens of every caption, for an epoch to find them again, would grow without end.
        collate = Collate({}, self.tokenizer)
        return collate.text(list(captions), numbers)

    def read(self, modality: str, samples: Sequence[Sample]) -> Batch:
        """Read samples by the reader of one modality, without augmentation.

        Args:
            modality: whose reader it is.
            samples: N samples; those without the modality are absent rows.

        Returns:
            Batch of N rows of that modality alone.

        Raises:
            ValueError: the run has no encoder of the modality.
        """
        self._require(modality)
        reader = self.readers[modality]
        rows: list[Row | None] = []
        for sample in samples:
            decoded = reader.decode(sample)
            if decoded is not None:
                decoded = reader.evaluate(decoded)
            rows.append(decoded)
        numbers = torch.arange(len(samples))
        batch = Batch(numbers)
        inputs, mask = reader.stack(rows)
        batch.put(modality, inputs, mask)
        batch.present[modality] = present(rows)
        return batch

    def _require(self, modality: str) -> None:
        if modality not in self.encoders:
            raise UserError(f"the run has no encoder of {modality}, only of {', '.join(self.encoders)}")


def present(rows: Sequence[Row | None]) -> Tensor:
    """Which of N rows are not None: (N,) bool."""
    return torch.tensor([row is not None for row in rows])


def as_image(image: ImageInput) -> Tensor:
    """The pixels of an image, a path or an array, read as those of a file are.

    Args:
        image: a PIL image, the path of one, or pixels: an array (H, W, 3) or a tensor (3, H, W), uint8.

    Returns:
        RGB (3, H, W) uint8.

    Raises:
        ValueError: the file or the array is no image.
        FileNotFoundError: the path does not exist.
    """
    if isinstance(image, Image.Image):
        return pixels_of(image)
    if isinstance(image, Tensor):
        if image.ndim != 3 or len(image) != 3 or image.dtype != torch.uint8:
            raise UserError(f"an image tensor must be (3, H, W) uint8, not {tuple(image.shape)} {image.dtype}")
        return image.cpu()
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(f"an image array must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
        return torch.tensor(image).permute(2, 0, 1)
    content = Path(image).read_bytes()
    return decode_image(content, str(image))


def as_waveform(clip: AudioInput) -> tuple[np.ndarray, int]:
    """Make a waveform of a path or an array.

    Args:
        clip: the path of an audio file, or a mono waveform (S,) in [-1, 1] with its rate in hertz.

    Returns:
        waveform (S,) float32 and its rate in hertz.

    Raises:
        ValueError: the file does not decode, or the waveform is not one row of finite numbers.
        FileNotFoundError: the path does not exist.
    """
    if isinstance(clip, str | Path):
        content = Path(clip).read_bytes()
        return decode_audio(content, str(clip))
    samples, rate = clip
    waveform = np.asarray(samples, dtype=np.float32)
    if waveform.ndim != 1 or not np.isfinite(waveform).all():
        raise UserError(f"a waveform must be one row (S,) of finite numbers, got shape {waveform.shape}")
    return waveform, rate
