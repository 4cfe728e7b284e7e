"""The currency between data and model: one sample as a dataset yields it, and a batch as a model is fed it."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


@dataclass(frozen=True)
class Sample:
    """One image with all its captions and, where there is one, its audio clip. Any modality may be absent.

    `audio` is mono float32 in [-1, 1] at `sample_rate` hertz. `caption_ids` run parallel to `captions`.
    """

    key: str
    image_id: int
    captions: tuple[str, ...] = ()
    caption_ids: tuple[int, ...] = ()
    image: "Image | None" = None
    audio: "np.ndarray | None" = None
    sample_rate: int = 0


@dataclass
class Batch:
    """What the model is fed. Shapes, for B samples, and N rows of a modality (N = B, or K·B with K captions each):

    ids (B,) int64: equal ids are the same image. sample_index[m] (N,) int64: the sample, a position in ids, that each
    row of modality m belongs to. present[m] (N,) bool: whether the row is there at all.
    inputs["image"] (N, 3, H, W) uint8 · inputs["text"] (N, L) int64 · inputs["audio"] (N, S) float32 waveform;
    masks["text"] (N, L) bool and masks["audio"] (N, S) bool, True where the input is real.
    features[m] (N, T, F) stand in for inputs[m] when a frozen trunk's output was cached; masks[m] is then (N, T).
    """

    ids: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)
    sample_index: dict[str, Tensor] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that the batch carries, as raw inputs or as cached features."""
        return tuple(dict.fromkeys([*self.inputs, *self.features]))

    def put(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> None:
        """Add a modality with a row for each sample, all of them there."""
        self.inputs[modality] = inputs
        if mask is not None:
            self.masks[modality] = mask
        rows = len(inputs)
        self.present[modality] = torch.ones(rows, dtype=torch.bool)
        self.sample_index[modality] = torch.arange(rows)

    def select(self, modalities: Collection[str]) -> "Batch":
        """The same samples with some of their modalities."""

        def kept(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {m: tensor for m, tensor in tensors.items() if m in modalities}

        return Batch(self.ids, *(kept(part) for part in self._parts))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """All tensors on a device."""

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {m: tensor.to(device, non_blocking=non_blocking) for m, tensor in tensors.items()}

        ids = self.ids.to(device, non_blocking=non_blocking)
        return Batch(ids, *(moved(part) for part in self._parts))

    @property
    def _parts(self) -> tuple[dict[str, Tensor], ...]:
        """Every field by modality, in the order of the constructor."""
        return self.inputs, self.features, self.masks, self.present, self.sample_index

    def __len__(self) -> int:
        return len(self.ids)


register_dataclass(Batch)
