"""From a sample to the tensors that an encoder is fed: decoded, cut, stacked. A tokenizer reads text instead.

A reader draws no random numbers: `augment` takes numbers in [0, 1) that are a pure function of (seed, epoch, index).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from encoders import AudioConfig, ImageConfig
from kernels.ranges import check_ranges
from kernels.threads import torch_threads
from mm.batch import Sample

Row = Any
"""What one reader makes and takes of a sample: a tensor or an array, of a shape and type of its own."""
LARGEST_SAMPLE = 32767
"""What an amplitude of 1 is as int16."""
RATES = (100, 10_000_000)
"""Lowest and highest rate of audio, in hertz: a file that claims another one is broken."""
LARGEST_FACTOR = 1 << 16
"""By what a rate is multiplied or divided at most."""
ZERO_CROSSINGS = 10
"""Of the resampling filter on either side, at the lower rate."""
FILTER_BYTES = 64 << 20
"""What resampling takes at most beside the waveforms: the filter of the largest factor, and its design."""


@dataclass(frozen=True)
class Augment:
    """What training does to an image. Mirroring is off: captions name left and right."""

    crop_scale: Annotated[float, "(0, 1]"] = 0.6
    """Smallest share of the image's area that a random crop keeps; 1 means no crop."""
    crop_ratio: Annotated[float, "[1, inf)"] = 4 / 3
    """Largest stretch of a crop's aspect, and 1 over it the smallest."""
    flip: bool = False
    """Mirror half of the images."""

    def __post_init__(self) -> None:
        check_ranges(self, "data.augment")


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Reader(Protocol):
    """How one modality of a sample becomes rows of a batch."""

    source: str
    """The modality of the dataset that it is read from."""
    chances: int
    """How many random numbers `augment` takes."""

    def settings(self) -> dict[str, Any]:
        """The settings, by name, that change what is read of a sample."""

    def decode(self, sample: Sample) -> Row | None:
        """What is kept in memory of a sample; None where it lacks the modality."""

    def evaluate(self, decoded: Row) -> Row:
        """The row that an evaluation reads, without any randomness."""

    def augment(self, decoded: Row, augment: Augment | None, chance: np.ndarray) -> Row:
        """The row that training reads.

        Args:
            decoded: as `decode` returns it.
            augment: its settings; None for a row as in evaluation.
            chance: (chances,) in [0, 1), which decide every random choice.
        """

    def stack(self, rows: Sequence[Row | None]) -> tuple[Tensor, Tensor | None]:
        """Stack rows into the inputs of an encoder.

        Args:
            rows: N rows as `evaluate` and `augment` return them, None where the sample lacks the modality.

        Returns:
            inputs (N, …), and their mask where inputs differ in length.
        """


class ImageReader:
    """Images (3, H, W) uint8 of any size -> inputs (N, 3, S, S) uint8, zeros where there is none.

    Args:
        image: the encoder's settings: S and how an image becomes a square.
    """

    source = "image"
    chances = 5

    def __init__(self, image: ImageConfig) -> None:
        self.size = image.size
        self.fit = image.fit

    def settings(self) -> dict[str, Any]:
        """Size in pixels, how an image becomes a square, and whose arithmetic does it."""
        from torchvision import __version__

        release, _, _ = __version__.partition("+")
        return {"image_size": self.size, "fit": self.fit, "pixels": f"torchvision {release}"}

    def decode(self, sample: Sample) -> Tensor | None:
        """The image (3, H, W) uint8."""
        return sample.image

    def evaluate(self, decoded: Tensor) -> Tensor:
        """(3, H, W) -> (3, S, S) uint8."""
        return resized(decoded, self.size, self.fit)

    def augment(self, decoded: Tensor, augment: Augment | None, chance: np.ndarray) -> Tensor:
        """(3, H, W), chance (5,) -> (3, S, S) uint8, see `augmented`."""
        if augment is None:
            return self.evaluate(decoded)
        return augmented(decoded, self.size, augment, chance)

    def stack(self, rows: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
        """N rows (3, S, S) or None -> inputs (N, 3, S, S) uint8, without a mask."""
        absent = torch.zeros(3, self.size, self.size, dtype=torch.uint8)
        images = [absent if row is None else row for row in rows]
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
        """Seconds per clip, hertz, and whose arithmetic resamples."""
        from scipy import __version__

        return {"audio_seconds": self.seconds, "sample_rate": self.sample_rate, "resampled": f"scipy {__version__}"}

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


def resized(image: Tensor, size: int, fit: str) -> Tensor:
    """Resize an image to a square, bicubic with antialiasing.

    Args:
        image: (3, H, W) uint8.
        size: pixels per side of the square.
        fit: "crop" cuts the centre square out first, "squash" changes the aspect.

    Returns:
        (3, size, size) uint8.
    """
    height, width = image.shape[1:]
    if height == width == size:
        return image
    box = Box(0, 0, height, width)
    if fit == "crop":
        side = min(height, width)
        box = Box((height - side) // 2, (width - side) // 2, side, side)
    return _resized_crop(image, box, size, "bicubic")


def augmented(image: Tensor, size: int, augment: Augment, chance: np.ndarray) -> Tensor:
    """Cut a random crop and resize it to a square, bilinear with antialiasing; perhaps mirror it.

    Args:
        image: (3, H, W) uint8.
        size: pixels per side of the square.
        augment: how far a crop may go, and whether images are mirrored.
        chance: (5,) in [0, 1): area, aspect, horizontal and vertical place of the crop, and mirroring.

    Returns:
        (3, size, size) uint8.
    """
    from torchvision.transforms.v2.functional import horizontal_flip

    if augment.crop_scale < 1:
        box = random_box(image.shape[1], image.shape[2], augment, chance)
        image = _resized_crop(image, box, size, "bilinear")
    else:
        image = resized(image, size, "squash")
    if augment.flip and chance[4] < 0.5:
        return horizontal_flip(image)
    return image


def random_box(height: int, width: int, augment: Augment, chance: np.ndarray) -> Box:
    """The part of an image that a random crop keeps.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        augment: the smallest share of the area and the largest stretch of the aspect.
        chance: (≥ 4,) in [0, 1): area, aspect, horizontal and vertical place.
    """
    area = augment.crop_scale + (1 - augment.crop_scale) * chance[0]
    side = area**0.5
    stretch = augment.crop_ratio ** (chance[1] - 0.5)
    crop_width = max(1, round(min(1.0, side * stretch) * width))
    crop_height = max(1, round(min(1.0, side / stretch) * height))
    left = round(chance[2] * (width - crop_width))
    top = round(chance[3] * (height - crop_height))
    return Box(top, left, crop_height, crop_width)


def resample(waveform: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Change the rate of a waveform by scipy's polyphase filter, which takes at most `FILTER_BYTES` for any two rates.

    A ratio that needs a longer filter is replaced by the nearest one that does not: above 65,536 Hz the length of a
    second is then off by less than a sample.

    Args:
        waveform: (S,) float32.
        rate: of the waveform, in hertz.
        target: the new rate, in hertz.

    Returns:
        (S · target / rate,) float32.

    Raises:
        ValueError: the rate is not one of audio.
    """
    if rate == target:
        return waveform
    lowest, highest = RATES
    if not lowest <= rate <= highest:
        raise ValueError(f"a waveform has a rate between {lowest:,} and {highest:,} hertz, not {rate:,}")
    from scipy.signal import resample_poly

    up, down = _ratio(rate, target)
    samples = np.asarray(waveform, dtype=np.float32)
    return resample_poly(samples, up, down, window=_lowpass(max(up, down)))


def _ratio(rate: int, target: int) -> tuple[int, int]:
    """By what a rate is multiplied and divided, neither of them above `LARGEST_FACTOR`."""
    if target > rate:
        down, up = _ratio(target, rate)
        return up, down
    ratio = Fraction(target, rate).limit_denominator(LARGEST_FACTOR)
    return ratio.numerator, ratio.denominator


@lru_cache(maxsize=4)
def _lowpass(factor: int) -> np.ndarray:
    """The filter (20 · factor + 1,) float32 of scipy's resample_poly, which would design it anew for each waveform."""
    from scipy.signal import firwin

    taps = 2 * ZERO_CROSSINGS * factor + 1
    return firwin(taps, 1 / factor, window=("kaiser", 5.0)).astype(np.float32)


def _resized_crop(image: Tensor, box: Box, size: int, kind: str) -> Tensor:
    """A box of an image (3, H, W) -> (3, size, size) uint8, antialiased, by one thread.

    Two threads do not share an image faster, and each waits for the other where cores are busy.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import resized_crop

    with torch_threads(1):
        return resized_crop(image, *box, [size, size], InterpolationMode(kind), antialias=True)
