"""What a user hands over, told apart: one input or a list of them, checked before anything is read."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kernels.errors import UserError

OVERSHOOT = 1.5
"""Largest amplitude that is taken for a waveform in [-1, 1]: resampling overshoots a little, integers by far."""
IMAGES = "PIL images, paths, arrays (H, W, 3) uint8 or tensors (3, H, W) uint8"
CLIPS = "paths or pairs (waveform, rate in hertz)"


@dataclass(frozen=True)
class Inputs:
    """Inputs of one modality.

    Args:
        items: in the user's order, as `mm.infer.processor.Processor` takes them; never empty.
        single: whether the user gave one input, and not a list that holds one.
    """

    items: list[Any]
    single: bool

    def __len__(self) -> int:
        """How many there are."""
        return len(self.items)


def image_inputs(given: Any) -> Inputs:
    """Tell one image from several.

    Args:
        given: a PIL image, a path, an array (H, W, 3) or a tensor (3, H, W), both uint8; or a list, an array
            (N, H, W, 3) or a tensor (N, 3, H, W) of these.

    Raises:
        ValueError: it is empty, or an item is no image; the message says which.
    """
    array = isinstance(given, np.ndarray | Tensor)
    if isinstance(given, Image.Image | str | PathLike) or (array and given.ndim != 4):
        return Inputs([as_pixels(given, "the image")], True)
    items = listed(given, "image", IMAGES)
    return Inputs([as_pixels(item, f"image {number}") for number, item in enumerate(items)], False)


def audio_inputs(given: Any) -> Inputs:
    """Tell one audio clip from several.

    Args:
        given: a path, or a pair of a mono waveform (S,) in [-1, 1] and its rate in hertz; or a list of these.

    Raises:
        ValueError: it is empty, or an item is no audio clip; the message says which.
    """
    if isinstance(given, str | PathLike) or is_clip(given):
        return Inputs([as_clip(given, "the audio clip")], True)
    if isinstance(given, np.ndarray | Tensor):
        raise UserError("a waveform needs its rate: give the pair (waveform, rate in hertz)")
    items = listed(given, "audio", CLIPS)
    return Inputs([as_clip(item, f"audio clip {number}") for number, item in enumerate(items)], False)


def text_inputs(given: Any) -> Inputs:
    """Tell one text from several.

    Args:
        given: a string, or a list of strings.

    Raises:
        ValueError: it is empty, or an item is no string or a blank one; the message says which.
    """
    single = isinstance(given, str)
    items = [given] if single else listed(given, "text", "strings")
    for number, item in enumerate(items):
        if not isinstance(item, str):
            raise UserError(f"text {number} is of type {type(item).__name__}, not a string")
        if not item.strip():
            raise UserError(f"text {number} is blank: there is nothing to encode")
    return Inputs(items, single)


INPUTS: dict[str, Callable[[Any], Inputs]] = {"image": image_inputs, "audio": audio_inputs, "text": text_inputs}
"""By modality."""


def listed(given: Any, modality: str, taken: str) -> list[Any]:
    """The items of a list, an array or any other iterable.

    Args:
        given: by the user.
        modality: that it is meant for.
        taken: what is taken, in words.

    Raises:
        ValueError: it is empty, or nothing to iterate over.
    """
    if isinstance(given, bytes | Mapping) or not isinstance(given, Iterable):
        raise UserError(f"{modality}: takes {taken}, one or a list, not {type(given).__name__}")
    items = list(given)
    if not items:
        raise UserError(f"{modality}: an empty list, there is nothing to encode")
    return items


def one_of(**given: Any) -> tuple[str, Any]:
    """The one argument that is not None, with its name.

    Raises:
        ValueError: there is none, or more than one.
    """
    stated = [(name, value) for name, value in given.items() if value is not None]
    if len(stated) != 1:
        raise UserError(f"give one of {', '.join(given)}, got {len(stated)}")
    return stated[0]


def as_pixels(image: Any, name: str) -> Any:
    """A PIL image or a path as it is; pixels checked.

    Args:
        image: by the user.
        name: what an error calls it.

    Returns:
        a PIL image, a path, an array (H, W, 3) or a tensor (3, H, W), both uint8.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(image, str | PathLike):
        return Path(image)
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, np.ndarray | Tensor):
        raise UserError(f"{name} is of type {type(image).__name__}: {IMAGES} are taken")
    shape = tuple(image.shape)
    layout = "(3, H, W)" if isinstance(image, Tensor) else "(H, W, 3)"
    channels = 0 if isinstance(image, Tensor) else 2
    fits = len(shape) == 3 and shape[channels] == 3 and min(shape) > 0
    if not fits or image.dtype not in (torch.uint8, np.uint8):
        kind = "tensor" if isinstance(image, Tensor) else "array"
        raise UserError(f"{name} must be a {kind} {layout} of uint8, got {shape} of {image.dtype}")
    return image


def is_clip(given: Any) -> bool:
    """Whether something looks like a pair of a waveform and its rate."""
    if not isinstance(given, tuple) or len(given) != 2:
        return False
    waveform, rate = given
    return isinstance(waveform, np.ndarray | Tensor | list) and isinstance(rate, Real)


def as_clip(clip: Any, name: str) -> Any:
    """A path as it is; a waveform checked.

    Args:
        clip: by the user.
        name: what an error calls it.

    Returns:
        a path, or a waveform (S,) float32 in [-1, 1] and its rate in hertz.

    Raises:
        ValueError: it is neither; integers are no waveform, since nobody says what their largest is.
    """
    if isinstance(clip, str | PathLike):
        return Path(clip)
    if not is_clip(clip):
        raise UserError(f"{name} is of type {type(clip).__name__}: {CLIPS} are taken")
    given, rate = clip
    waveform = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if waveform.ndim != 1 or waveform.dtype.kind != "f" or not len(waveform):
        raise UserError(f"{name} must be one row (S,) of float, got {waveform.shape} of {waveform.dtype}")
    if not np.isfinite(waveform).all() or np.abs(waveform).max() > OVERSHOOT:
        raise UserError(f"{name} leaves [-1, 1], or holds numbers that are not finite")
    if rate != int(rate) or rate <= 0:
        raise UserError(f"{name} has a rate of {rate} hertz: it must be a positive whole number")
    return waveform.astype(np.float32), int(rate)
