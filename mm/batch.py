"""The currency between data and model: one sample as a dataset yields it, and a batch as a model is fed it."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Sample:
    """One image with all its captions and, where there is one, its audio clip. Any modality may be absent.

    Args:
        key: names the sample in messages.
        image_id: equal for samples of the same image.
        captions: none where there is no text.
        caption_ids: of the captions, in their order.
        image: RGB (3, H, W) uint8 of any size.
        audio: mono waveform (S,) float32 in [-1, 1].
        sample_rate: of the waveform, in hertz.
    """

    key: str
    image_id: int
    captions: tuple[str, ...] = ()
    caption_ids: tuple[int, ...] = ()
    image: Tensor | None = None
    audio: "np.ndarray | None" = None
    sample_rate: int = 0


@dataclass
class Batch:
    """What the model is fed: B samples, and N rows of each modality (N = B, or K·B with K captions each).

    Args:
        ids: (B,) int64; equal ids are the same image.
        inputs: image (N, 3, H, W) uint8; text (N, L) int64; audio (N, S) float32 waveform.
        features: (N, T, F), the cached output of a frozen trunk, in the place of `inputs`.
        masks: bool, True where the input is real: text (N, L); audio (N, S); (N, T) of cached features.
        present: (N,) bool, False where a row's sample lacks the modality.
        sample_index: (N,) int64, the sample (a position in `ids`) that each row belongs to.
    """

    ids: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)
    sample_index: dict[str, Tensor] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the batch carries, as raw inputs or as cached features."""
        return tuple(dict.fromkeys([*self.inputs, *self.features]))

    def put(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> None:
        """Add a modality with one row for each sample, all of them present.

        Args:
            modality: its name.
            inputs: (N, …), as an encoder takes them.
            mask: bool, True where an input is real; None where all are.
        """
        self.inputs[modality] = inputs
        if mask is not None:
            self.masks[modality] = mask
        rows = len(inputs)
        self.present[modality] = torch.ones(rows, dtype=torch.bool)
        self.sample_index[modality] = torch.arange(rows)

    def select(self, modalities: Collection[str]) -> "Batch":
        """The same samples with some of their modalities, without copying."""

        def kept(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {m: tensor for m, tensor in tensors.items() if m in modalities}

        parts = [kept(part) for part in self._parts]
        return Batch(self.ids, *parts)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """All tensors on a device.

        Args:
            device: where they go; tensors that are there are not copied.
            non_blocking: return before copies from pinned memory have ended.
        """

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {m: tensor.to(device, non_blocking=non_blocking) for m, tensor in tensors.items()}

        ids = self.ids.to(device, non_blocking=non_blocking)
        parts = [moved(part) for part in self._parts]
        return Batch(ids, *parts)

    def pin_memory(self) -> "Batch":
        """All tensors in pinned memory, from which a GPU copies while the host goes on; torch's loader asks for it."""

        def pinned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {m: tensor.pin_memory() for m, tensor in tensors.items()}

        parts = [pinned(part) for part in self._parts]
        return Batch(self.ids.pin_memory(), *parts)

    @property
    def _parts(self) -> tuple[dict[str, Tensor], ...]:
        """Every field by modality, in the order of the constructor."""
        return self.inputs, self.features, self.masks, self.present, self.sample_index

    def __len__(self) -> int:
        """B, the number of samples."""
        return len(self.ids)


register_dataclass(Batch)
