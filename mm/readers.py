"""From a sample to the tensors that an encoder is fed: decoded, cut, stacked. Text is read by a tokenizer instead.

A reader draws nothing itself: `augment` is handed numbers in [0, 1) that are a pure function of (seed, epoch, index).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from encoders import AudioConfig, ImageConfig
from mm.batch import Sample


@dataclass(frozen=True)
class Augment:
    """What training does to an image. Mirroring is off: captions name left and right."""

    crop_scale: float = 0.6
    """Smallest share of the image's area that a random crop keeps; 1 means no crop."""
    crop_ratio: float = 4 / 3
    """Largest stretch of a crop's aspect, and 1 over it the smallest."""
    flip: bool = False
    """Mirror half of the images."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale <= 1 or self.crop_ratio < 1:
            raise ValueError(f"augment: crop_scale must lie in (0, 1] and crop_ratio be at least 1, got {self}")


class Reader(Protocol):
    """How one modality of a sample becomes rows of a batch."""

    source: str
    """The modality of the dataset that it is read from."""
    chances: int
    """How many numbers `augment` is handed."""

    def settings(self) -> dict[str, Any]:
        """Everything beside the sample that shapes what is read."""

    def decode(self, sample: Sample) -> np.ndarray | None:
        """What is kept in memory of a sample, None where it lacks the modality."""

    def evaluate(self, decoded: np.ndarray) -> np.ndarray:
        """What an evaluation sees of it, without any randomness."""

    def augment(self, decoded: np.ndarray, augment: Augment | None, chance: np.ndarray) -> np.ndarray:
        """What training sees of it; chance (chances,) in [0, 1)."""

    def stack(self, rows: Sequence[np.ndarray | None]) -> tuple[Tensor, Tensor | None]:
        """Rows as `evaluate` and `augment` give them, None where absent -> inputs (N, …) and their mask, if any."""


class ImageReader:
    """Images (H, W, 3) uint8 of any size -> inputs (N, 3, S, S) uint8, zeros where there is none."""

    source = "image"
    chances = 5

    def __init__(self, image: ImageConfig) -> None:
        self.size = image.size
        self.fit = image.fit

    def settings(self) -> dict[str, Any]:
        return {"image_size": self.size, "fit": self.fit}

    def decode(self, sample: Sample) -> np.ndarray | None:
        if sample.image is None:
            return None
        return np.array(sample.image.convert("RGB"))

    def evaluate(self, decoded: np.ndarray) -> np.ndarray:
        return resized(decoded, self.size, self.fit)

    def augment(self, decoded: np.ndarray, augment: Augment | None, chance: np.ndarray) -> np.ndarray:
        if augment is None:
            return self.evaluate(decoded)
        return augmented(decoded, self.size, augment, chance)

    def stack(self, rows: Sequence[np.ndarray | None]) -> tuple[Tensor, Tensor | None]:
        absent = np.zeros((self.size, self.size, 3), np.uint8)
        images = [torch.from_numpy(absent if row is None else row).permute(2, 0, 1) for row in rows]
        return torch.stack(images), None


class AudioReader:
    """Waveforms of any length and rate -> inputs (N, S) float32 in [-1, 1] at one rate, mask (N, S) bool.

    A clip that is longer is cut, in training at a random place; a shorter one is padded with zeros.
    """

    source = "audio"
    chances = 1

    def __init__(self, audio: AudioConfig) -> None:
        self.seconds = audio.seconds
        self.sample_rate = audio.sample_rate
        self.samples = round(audio.seconds * audio.sample_rate)

    def settings(self) -> dict[str, Any]:
        return {"audio_seconds": self.seconds, "sample_rate": self.sample_rate}

    def decode(self, sample: Sample) -> np.ndarray | None:
        """The waveform (S,) int16 at the reader's rate."""
        if sample.audio is None or not len(sample.audio):
            return None
        waveform = resample(sample.audio, sample.sample_rate, self.sample_rate)
        return np.round(np.clip(waveform, -1.0, 1.0) * 32767).astype(np.int16)

    def evaluate(self, decoded: np.ndarray) -> np.ndarray:
        return decoded[: self.samples]

    def augment(self, decoded: np.ndarray, augment: Augment | None, chance: np.ndarray) -> np.ndarray:
        if augment is None:
            return self.evaluate(decoded)
        spare = max(0, len(decoded) - self.samples)
        first = int(chance[0] * (spare + 1))
        return decoded[first : first + self.samples]

    def stack(self, rows: Sequence[np.ndarray | None]) -> tuple[Tensor, Tensor | None]:
        padded = np.zeros((len(rows), self.samples), dtype=np.int16)
        lengths = torch.zeros(len(rows), dtype=torch.int64)
        for position, row in enumerate(rows):
            if row is not None:
                padded[position, : len(row)] = row
                lengths[position] = len(row)
        waveforms = torch.from_numpy(padded).to(torch.float32).mul_(1 / 32767)
        return waveforms, torch.arange(self.samples) < lengths[:, None]


def resized(image: np.ndarray, size: int, fit: str) -> np.ndarray:
    """(H, W, 3) -> (size, size, 3) uint8, bicubic with antialiasing; "crop" cuts the centre square first."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    box = (0.0, 0.0, float(width), float(height))
    if fit == "crop":
        side = min(height, width)
        left = (width - side) / 2
        top = (height - side) / 2
        box = (left, top, left + side, top + side)
    return _resize(image, size, box, bicubic=True)


def augmented(image: np.ndarray, size: int, augment: Augment, chance: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (size, size, 3) uint8: a random crop, perhaps mirrored.

    chance (5,) in [0, 1) decides area, aspect, horizontal and vertical place of the crop, and mirroring.
    """
    height, width = image.shape[:2]
    if augment.crop_scale < 1:
        area = augment.crop_scale + (1 - augment.crop_scale) * chance[0]
        stretch = augment.crop_ratio ** (chance[1] - 0.5)
        crop_width = min(1.0, area**0.5 * stretch) * width
        crop_height = min(1.0, area**0.5 / stretch) * height
        left = chance[2] * (width - crop_width)
        top = chance[3] * (height - crop_height)
        image = _resize(image, size, (left, top, left + crop_width, top + crop_height), bicubic=False)
    else:
        image = resized(image, size, "squash")
    if augment.flip and chance[4] < 0.5:
        return np.ascontiguousarray(image[:, ::-1])
    return image


def resample(waveform: np.ndarray, rate: int, target: int) -> np.ndarray:
    """(S,) at `rate` -> (S · target / rate,) at `target` hertz, band-limited (torchaudio's windowed sinc)."""
    if rate == target:
        return waveform
    if rate <= 0:
        raise ValueError(f"a waveform needs its sample rate, got {rate}")
    from torchaudio.functional import resample as windowed_sinc

    return windowed_sinc(torch.from_numpy(np.ascontiguousarray(waveform)), rate, target).numpy()


def _resize(image: np.ndarray, size: int, box: tuple[float, float, float, float], bicubic: bool) -> np.ndarray:
    import PIL.Image

    kind = PIL.Image.Resampling.BICUBIC if bicubic else PIL.Image.Resampling.BILINEAR
    return np.array(PIL.Image.fromarray(image).resize((size, size), kind, box=box, reducing_gap=3.0))
