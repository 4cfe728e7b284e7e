"""What every model that makes vectors offers, a finished run as well as a tower of timm or open_clip."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from kernels.errors import UserError
from mm.infer.ahead import read_ahead
from mm.infer.inputs import INPUTS, Inputs
from mm.progress import Course

ROWS = 64
"""Inputs that pass a model at a time."""


class BaseEmbedder(ABC):
    """Raw inputs to unit vectors.

    One input gives one vector (E,), a list of N gives (N, E): what is asked for alone needs no index. Vectors are
    float32, on the CPU, and do not depend on what else is in the list.

    Args:
        name: what `mm.load` was given, for messages and for indexes.
        modalities: those that the model reads.
        width: E.
    """

    def __init__(self, name: str, modalities: Sequence[str], width: int) -> None:
        self.name = name
        self.modalities = tuple(modalities)
        self.width = width

    def encode_image(self, images: Any) -> Tensor:
        """Embed images.

        Args:
            images: a PIL image, a path, an array (H, W, 3) uint8 or a tensor (3, H, W) uint8, or a list of these.

        Returns:
            unit vector (E,) of one image, (N, E) of a list.

        Raises:
            ValueError: an input is no image, the list is empty, or the model reads no images.
            FileNotFoundError: a path does not exist.
        """
        return self.encode("image", images)

    def encode_audio(self, clips: Any) -> Tensor:
        """Embed audio clips.

        Args:
            clips: a path, or a pair of a mono waveform (S,) in [-1, 1] and its rate in hertz, or a list of these.

        Returns:
            unit vector (E,) of one clip, (N, E) of a list.

        Raises:
            ValueError: an input is no audio clip, the list is empty, or the model reads no audio.
            FileNotFoundError: a path does not exist.
        """
        return self.encode("audio", clips)

    def encode_text(self, texts: Any) -> Tensor:
        """Embed text.

        Args:
            texts: a string, or a list of strings.

        Returns:
            unit vector (E,) of one string, (N, E) of a list.

        Raises:
            ValueError: a string is blank, the list is empty, or the model reads no text.
        """
        return self.encode("text", texts)

    def encode(self, modality: str, given: Any) -> Tensor:
        """Embed inputs of any modality, see `encode_image`, `encode_audio` and `encode_text`.

        Args:
            modality: of all inputs.
            given: one input or a list of N.

        Returns:
            unit vector (E,) of one, (N, E) of a list.

        Raises:
            ValueError: an input is of another kind or cannot be read, or the model does not read the modality.
        """
        inputs = self.inputs(modality, given)
        vectors = []
        for batch in self.batches(modality, inputs):
            with torch.inference_mode():
                vectors.append(self.vectors(modality, batch).float().cpu())
        found = torch.cat(vectors)  # outside of inference mode: what is returned may enter a training step
        return found[0] if inputs.single else found

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Cosines of unit vectors.

        Args:
            a: (N, E), or one vector (E,).
            b: (M, E), or one vector (E,).

        Returns:
            (N, M), without the axis of what is one vector: () of two.

        Raises:
            ValueError: the vectors are not of one width.
        """
        if a.shape[-1] != b.shape[-1]:
            raise UserError(f"vectors of width {a.shape[-1]} and {b.shape[-1]} are of different models")
        return a @ b.T if b.ndim == 2 else a @ b

    def match(self, image: Any, text: Any) -> Tensor:
        """Score pairs of images and texts by a joint reading.

        Args:
            image: one image or a list of N.
            text: one string or a list of N.

        Returns:
            log-odds () or (N,) that each image and its text are a pair; `torch.sigmoid` makes probabilities of them.

        Raises:
            ValueError: the model reads no two modalities jointly.
        """
        raise UserError(f"{self.name} has no joint reading of image and text: `similarity` compares their vectors")

    def codes(self, *, image: Any = None, audio: Any = None, text: Any = None) -> Tensor:
        """Quantize inputs of one modality.

        Args:
            image: one or a list of N; or
            audio: one or a list of N; or
            text: one or a list of N.

        Returns:
            codes (T, Q) int64 of one input, (N, T, Q) of a list, of Q quantizers at T tokens; -1 at padding.

        Raises:
            ValueError: not exactly one modality is given, or the model has no codes.
        """
        raise UserError(f"{self.name} has no codes: only a run with a quantizer has")

    @cached_property
    def digest(self) -> str:
        """The identity of the model: equal for models that make equal vectors of everything."""
        return self._digest()

    def inputs(self, modality: str, given: Any) -> Inputs:
        """Check what a user gave.

        Raises:
            ValueError: it is not of the modality, or the model does not read that.
        """
        if modality not in self.modalities:
            raise UserError(f"{self.name} has no encoder of {modality}, only of {', '.join(self.modalities)}")
        return INPUTS[modality](given)

    def batches(self, modality: str, inputs: Inputs) -> Iterator[Any]:
        """Read inputs in their order.

        Args:
            modality: theirs.
            inputs: N of them.

        Yields:
            at most `ROWS` of them as the model takes them.
        """
        read = partial(self.read, modality)
        with Course(f"encoding {modality}", len(inputs)) as course:
            for begun in read_ahead(inputs.items, read, ROWS):
                rows = [future.result() for future in begun]
                yield self.stack(modality, rows)
                course.advance(len(rows))

    @abstractmethod
    def read(self, modality: str, item: Any) -> Any:
        """Read one input, in any thread. Raises ValueError or OSError, naming the file, where it cannot be read."""

    @abstractmethod
    def stack(self, modality: str, rows: list[Any]) -> Any:
        """N inputs as `read` returns them -> what `vectors` takes."""

    @abstractmethod
    def vectors(self, modality: str, batch: Any) -> Tensor:
        """A batch of N inputs as `stack` returns it -> unit vectors (N, E) on the model's device."""

    @abstractmethod
    def _digest(self) -> str:
        """Computes `digest`."""
