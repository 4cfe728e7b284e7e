"""Images and audio as data URIs, so that a page is one file."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

PIXELATED = 96
"""Images of at most so many pixels per side are shown enlarged without blur."""
HEAT = np.array([(10, 8, 40), (84, 15, 109), (187, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)
"""Colours of a spectrogram, from the lowest value to the highest (matplotlib's `inferno`, at five places)."""


@dataclass(frozen=True)
class Source:
    """An image that a page shows: its data URI and its size in pixels."""

    uri: str
    width: int
    height: int

    @property
    def small(self) -> bool:
        """Whether it is enlarged without blur."""
        return max(self.width, self.height) <= PIXELATED


def photo(image: Image.Image, side: int = 260) -> Source:
    """A whole image, shrunk to at most `side` pixels, as a JPEG."""
    shrunk = image.convert("RGB")
    shrunk.thumbnail((side, side))
    buffer = io.BytesIO()
    shrunk.save(buffer, format="JPEG", quality=80, optimize=True)
    return Source(data_uri(buffer.getvalue(), "image/jpeg"), *shrunk.size)


def pixels(image: Image.Image) -> Source:
    """An image as it is, as a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return Source(data_uri(buffer.getvalue(), "image/png"), *image.size)


def spectrogram(values: np.ndarray, limits: tuple[float, float] | None = None) -> Source:
    """A spectrogram (bands, frames), low bands at the bottom; NaN is clear.

    Args:
        values: of the spectrogram.
        limits: the darkest and the brightest value; by default its own.
    """
    found = np.asarray(values, dtype=np.float64)[::-1]
    known = np.isfinite(found)
    low, high = limits or limits_of(found)
    span = high - low if high > low else 1.0
    share = np.clip((np.where(known, found, low) - low) / span, 0, 1)
    place = np.linspace(0, 1, len(HEAT))
    colours = [np.interp(share, place, channel) for channel in HEAT.T]
    layers = np.stack([*colours, 255 * known], -1).round().astype(np.uint8)
    return pixels(Image.fromarray(layers, "RGBA").quantize(64))


def veil(weights: np.ndarray, darkness: float = 0.75) -> Source:
    """A dark layer over an image, clear where a weight is largest and darkest at zero; a page stretches it smoothly.

    Args:
        weights: (rows, columns) >= 0.
        darkness: opacity at a weight of zero.
    """
    top = float(weights.max()) or 1.0
    opacity = 255 * darkness * (1 - weights / top)
    layers = np.zeros((*weights.shape, 2), dtype=np.uint8)
    layers[..., 1] = opacity.round()
    return pixels(Image.fromarray(layers, "LA"))


def tint(shares: np.ndarray, colour: tuple[int, int, int]) -> Source:
    """Shares (rows, columns) in [0, 1] as the opacity of one colour: readable on a light and on a dark page."""
    layers = np.zeros((*shares.shape, 4), dtype=np.uint8)
    layers[..., :3] = colour
    layers[..., 3] = (255 * np.clip(shares, 0, 1)).round()
    return pixels(Image.fromarray(layers, "RGBA"))


def limits_of(values: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest finite value; 0 and 1 where there is none."""
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def data_uri(content: bytes, kind: str) -> str:
    """`data:<kind>;base64,...`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Clip:
    """An audio clip that a page plays."""

    content: bytes
    """Of its file."""
    kind: str
    """Its media type, such as `audio/flac`."""
    spectrogram: np.ndarray
    """(bands, frames), low bands first."""

    @property
    def uri(self) -> str:
        """Its data URI."""
        return data_uri(self.content, self.kind)
