"""Small sets of images, captions and audio clips, whose content says which sample they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mm.batch import Sample
from mm.data.media import pixels_of


def _photograph(number: int, size: tuple[int, int] = (24, 16), audio: bool = False) -> Sample:
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = pixels_of(PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BICUBIC))
    captions = tuple(f"image {number}, caption {k}" for k in range(2 + number % 2))
    waveform = 0.5 * np.sin(2 * np.pi * (200 + 10 * number) * np.arange(1600) / 16000).astype(np.float32)
    return Sample(
        f"photo_{number:03d}",
        100 + number,
        captions,
        tuple(10 * number + k for k in range(len(captions))),
        image,
        waveform if audio else None,
        16000 if audio else 0,
    )


@pytest.fixture
def photographs() -> Callable[..., list[Sample]]:
    """photographs(count, size=(width, height), audio=False) -> samples, the same every time."""
    return lambda count, **kwargs: [_photograph(number, **kwargs) for number in range(count)]


@pytest.fixture
def text_of() -> Callable[[Sample], tuple]:
    """text_of(sample): what names a sample and what is said of it."""
    return lambda sample: (sample.key, sample.image_id, sample.captions, sample.caption_ids)


@pytest.fixture
def edit() -> Callable[[Path, Callable[[Any], Any]], None]:
    """edit(path, change) calls `change` with the content of a JSON file and writes it back."""

    def run(path: Path, change: Callable[[Any], Any]) -> None:
        content = json.loads(path.read_text())
        content.pop("digest", None)  # an index of an earlier version, which nobody sees was edited
        change(content)
        path.write_text(json.dumps(content))

    return run
