"""From a sample to the tensors that an encoder is fed: decoded, cut, stacked. A tokenizer reads text instead.

A reader draws no random numbers: `augment` takes numbers in [0, 1) that are a pure function of (seed, epoch, index).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from encoders import AudioConfig, ImageConfig
from mm.batch import Sample

LARGEST_SAMPLE = 32767
"""What an amplitude of 1 is as int16."""


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
    """How many random numbers `augment` takes."""

    def settings(self) -> dict[str, Any]:
        """The settings, by name, that change what is read of a sample."""

    def decode(self, sample: Sample) -> np.ndarray | None:
        """What is kept in memory of a sample; None where it lacks the modality."""

    def evaluate(self, decoded: np.ndarray) -> np.ndarray:
        """The row that an evaluation reads, without any randomness."""

    def augment(self, decoded: np.ndarray, augment: Augment | None, chance: np.ndarray) -> np.ndarray:
        """The row that training reads.

        Args:
            decoded: as `decode` returns it.
            augment: its settings; None for a row as in evaluation.
            chance: (chances,) in [0, 1), which decide every random choice.
        """

    def stack(self, rows: Sequence[np.ndarray | None]) -> tuple[Tensor, Tensor | None]:
        """Stack rows into the inputs of an encoder.

        Args:
            rows: N rows as `evaluate` and `augment` return them, None where the sample lacks the modality.

        Returns:
            inputs (N, …), and their mask where inputs differ in length.
        """


class ImageReader:
    """Images (H, W, 3) uint8 of any size -> inputs (N, 3, S, S) uint8, zeros where there is none.

    Args:
        image: the encoder's settings: S and how an image becomes a square.
    """

    source = "image"
    chances = 5

    def __init__(self, image: ImageConfig) -> None:
        self.size = image.size
        self.fit = image.fit

    def settings(self) -> dict[str, Any]:
        """Size in pixels, and how an image becomes a square."""
        return {"image_size": self.size, "fit": self.fit}

    def decode(self, sample: Sample) -> np.ndarray | None:
        """The image (H, W, 3) uint8."""
        if sample.image is None:
            return None
        return np.array(sample.image.convert("RGB"))

    def evaluate(self, decoded: np.ndarray) -> np.ndarray:
        """(H, W, 3) -> (S, S, 3) uint8."""
        return resized(decoded, self.size, self.fit)

    def augment(self, decoded: np.ndarray, augment: Augment | None, chance: np.ndarray) -> np.ndarray:
        """(H, W, 3), chance (5,) -> (S, S, 3) uint8, see `augmented`."""
        if augment is None:
            return self.evaluate(decoded)
        return augmented(decoded, self.size, augment, chance)

    def stack(self, rows: Sequence[np.ndarray | None]) -> tuple[Tensor, Tensor | None]:
        """N rows (S, S, 3) or None -> inputs (N, 3, S, S) uint8, without a mask."""
        absent = np.zeros((self.size, self.size, 3), np.uint8)
        images = []
        for row in rows:
            pixels = absent if row is None else row
            images.append(torch.from_numpy(pixels).permute(2, 0, 1))
        return torch.stack(images), None


class AudioReader:
    """Waveforms of any length and rate -> inputs (N, S) float32 in [-1, 1] at one rate, mask (N, S) bool.

    A longer clip is cut, in training at a random place; a shorter one is padded with zeros.

    Args:
        audio: the encoder's settings: seconds per clip, and hertz.
    """

    source = "audio"
    chances = 1

    def __init__(self, audio: AudioConfig) -> None:
        self.seconds = audio.seconds
        self.sample_rate = audio.sample_rate
        self.samples = round(audio.seconds * audio.sample_rate)

    def settings(self) -> dict[str, Any]:
        """Seconds per clip, and hertz."""
        return {"audio_seconds": self.seconds, "sample_rate": self.sample_rate}

    def decode(self, sample: Sample) -> np.ndarray | None:
        """The waveform (S,) int16 at the reader's rate."""
        if sample.audio is None or not len(sample.audio):
            return None
        waveform = resample(sample.audio, sample.sample_rate, self.sample_rate)
        scaled = np.clip(waveform, -1.0, 1.0) * LARGEST_SAMPLE
        return np.round(scaled).astype(np.int16)

    def evaluate(self, decoded: np.ndarray) -> np.ndarray:
        """The first S samples (≤ S,) int16."""
        return decoded[: self.samples]

    def augment(self, decoded: np.ndarray, augment: Augment | None, chance: np.ndarray) -> np.ndarray:
        """S samples in a row (≤ S,) int16; chance (1,) decides where they begin."""
        if augment is None:
            return self.evaluate(decoded)
        spare = max(0, len(decoded) - self.samples)
        first = int(chance[0] * (spare + 1))
        return decoded[first : first + self.samples]

    def stack(self, rows: Sequence[np.ndarray | None]) -> tuple[Tensor, Tensor | None]:
        """N rows (≤ S,) int16 or None -> inputs (N, S) float32 in [-1, 1], mask (N, S) bool, True where real."""
        padded = np.zeros((len(rows), self.samples), dtype=np.int16)
        lengths = torch.zeros(len(rows), dtype=torch.int64)
        for position, row in enumerate(rows):
            if row is None:
                continue
            padded[position, : len(row)] = row
            lengths[position] = len(row)
        waveforms = torch.from_numpy(padded).to(torch.float32)
        waveforms.mul_(1 / LARGEST_SAMPLE)
        mask = torch.arange(self.samples) < lengths[:, None]
        return waveforms, mask


def resized(image: np.ndarray, size: int, fit: str) -> np.ndarray:
    """Resize an image to a square, bicubic with antialiasing.

    Args:
        image: (H, W, 3) uint8.
        size: pixels per side of the square.
        fit: "crop" cuts the centre square out first, "squash" changes the aspect.

    Returns:
        (size, size, 3) uint8.
    """
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
    """Cut a random crop and resize it to a square, bilinear with antialiasing; perhaps mirror it.

    Args:
        image: (H, W, 3) uint8.
        size: pixels per side of the square.
        augment: how far a crop may go, and whether images are mirrored.
        chance: (5,) in [0, 1): area, aspect, horizontal and vertical place of the crop, and mirroring.

    Returns:
        (size, size, 3) uint8.
    """
    height, width = image.shape[:2]
    if augment.crop_scale < 1:
        area = augment.crop_scale + (1 - augment.crop_scale) * chance[0]
        side = area**0.5
        stretch = augment.crop_ratio ** (chance[1] - 0.5)
        crop_width = min(1.0, side * stretch) * width
        crop_height = min(1.0, side / stretch) * height
        left = chance[2] * (width - crop_width)
        top = chance[3] * (height - crop_height)
        box = (left, top, left + crop_width, top + crop_height)
        image = _resize(image, size, box, bicubic=False)
    else:
        image = resized(image, size, "squash")
    if augment.flip and chance[4] < 0.5:
        return np.ascontiguousarray(image[:, ::-1])
    return image


def resample(waveform: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Change the rate of a waveform, band-limited by torchaudio's windowed sinc.

    Args:
        waveform: (S,) float32.
        rate: of the waveform, in hertz.
        target: the new rate, in hertz.

    Returns:
        (S · target / rate,) float32.

    Raises:
        ValueError: the rate is not positive.
    """
    if rate == target:
        return waveform
    if rate <= 0:
        raise ValueError(f"a waveform needs its sample rate, got {rate}")
    from torchaudio.functional import resample as windowed_sinc

    samples = torch.from_numpy(np.ascontiguousarray(waveform))
    return windowed_sinc(samples, rate, target).numpy()


def _resize(image: np.ndarray, size: int, box: tuple[float, float, float, float], bicubic: bool) -> np.ndarray:
    """The box (left, top, right, bottom), in pixels, of an image (H, W, 3) -> (size, size, 3) uint8."""
    import PIL.Image

    kind = PIL.Image.Resampling.BICUBIC if bicubic else PIL.Image.Resampling.BILINEAR
    original = PIL.Image.fromarray(image)
    square = original.resize((size, size), kind, box=box, reducing_gap=3.0)
    return np.array(square)
