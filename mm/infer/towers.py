"""Models of others as embedders: open_clip's image and text towers, and any image tower of timm."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from encoders.clip_towers import image_transform, open_clip_model, open_clip_tokenizer
from encoders.state import load_weights, weights_digest
from encoders.trunks import classifiers, fetching
from kernels.errors import UserError
from mm.data.media import pil_image
from mm.infer.base import BaseEmbedder
from mm.infer.processor import as_image


class Tower(BaseEmbedder):
    """A model of a library behind its own preprocessing. Its vectors are compared; it has no codes and no match head.

    Args:
        name: `open_clip/<model>:<tag or file>` or `timm/<model>[:<file>]`.
        model: a network in evaluation mode.
        modalities: those that it reads.
        width: E.
        transform: PIL image in RGB -> (3, H, W) as the network takes it.
    """

    def __init__(self, name: str, model: Any, modalities: tuple[str, ...], width: int, transform: Any) -> None:
        super().__init__(name, modalities, width)
        self.model = model
        self.transform = transform

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def read(self, modality: str, item: Any) -> Any:
        """One image through the model's own preprocessing -> (3, H, W) float32; a string stays one."""
        if modality == "text":
            return item
        return self.transform(pil_image(as_image(item)))

    def stack(self, modality: str, rows: list[Any]) -> Tensor:
        """N images (3, H, W) -> (N, 3, H, W)."""
        return torch.stack(rows)

    def vectors(self, modality: str, batch: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> unit vectors (N, E)."""
        return normalize(self.model(batch.to(self.device)).float(), dim=-1)

    def _digest(self) -> str:
        """Of the weights and the preprocessing."""
        content = f"{self.name.partition(':')[0]} {weights_digest(self.model)} {self.transform}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class OpenClip(Tower):
    """An open_clip model with its own preprocessing and its own tokenizer.

    Args:
        name: `<model>:<tag or file>`, or `<model>` with random weights.

    Raises:
        ValueError: there is no such model, or it has no such weights.
    """

    def __init__(self, name: str) -> None:
        model = open_clip_model(name, None).eval()
        self.tokenizer = open_clip_tokenizer(name)
        super().__init__(f"open_clip/{name}", model, ("image", "text"), _width(model), image_transform(name, model))

    def stack(self, modality: str, rows: list[Any]) -> Tensor:
        """N images (3, H, W) -> (N, 3, H, W), or N strings -> token ids (N, L) int64."""
        return self.tokenizer(rows) if modality == "text" else torch.stack(rows)

    def vectors(self, modality: str, batch: Tensor) -> Tensor:
        """Images (N, 3, H, W) or token ids (N, L) -> unit vectors (N, E)."""
        encode = self.model.encode_text if modality == "text" else self.model.encode_image
        return encode(batch.to(self.device), normalize=True)


class Timm(Tower):
    """A timm model's pooled features, normalised, with the preprocessing of its own weights.

    Args:
        name: `<model>` or `<model>:<file>`.

    Raises:
        ValueError: there is no such model, or its weights cannot be fetched or read.
    """

    def __init__(self, name: str) -> None:
        import timm

        architecture, _, weights = name.partition(":")
        if not timm.is_model(architecture.split(".")[0]):
            raise UserError(f"timm has no model named {architecture!r}: see `mm-align list trunks`")
        with fetching(f"timm/{name}"):
            model = timm.create_model(architecture, pretrained=not weights, num_classes=0).eval()
        if weights:
            load_weights(model, weights, classifiers(model))
        settings = timm.data.resolve_model_data_config(model)
        transform = timm.data.create_transform(**settings, is_training=False)
        with torch.inference_mode():
            width = model(torch.zeros(1, *settings["input_size"])).shape[-1]
        super().__init__(f"timm/{name}", model, ("image",), width, transform)


def _width(model: Any) -> int:
    """How wide the embedding of an open_clip model is."""
    size = model.visual.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    with torch.inference_mode():
        return model.encode_image(torch.zeros(1, 3, height, width)).shape[-1]


def trained_open_clip(name: str) -> OpenClip:
    """The model `<model>:<tag or file>`. Raises ValueError where no weights are named: vectors would be random."""
    _, _, tag = name.partition(":")
    if not tag:
        raise UserError(f"open_clip/{name} names no weights: add :<tag or file>")
    return OpenClip(name)


TOWERS: dict[str, Callable[[str], Tower]] = {"open_clip": trained_open_clip, "timm": Timm}
"""By the library that stands in front of a name."""
