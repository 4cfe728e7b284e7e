"""What a dataset yields and what a model is fed: one image with everything that belongs to it, and a batch of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from PIL.Image import Image
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One image with all its captions and, where there is one, its audio. Any modality may be absent.

    `audio` is mono float32 in [-1, 1] at `sample_rate` hertz. `caption_ids` run parallel to `captions`.
    """

    key: str
    image_id: int
    captions: tuple[str, ...] = ()
    caption_ids: tuple[int, ...] = ()
    image: Image | None = None
    audio: np.ndarray | None = None
    sample_rate: int = 0


class CaptionDataset(Protocol):
    """A split on disk: random access by position, captions readable without decoding an image or an audio clip."""

    name: str
    image_ids: list[int]
    captions: list[tuple[str, ...]]
    caption_ids: list[tuple[int, ...]]
    modalities: frozenset[str]
    has_audio: list[bool]
    skipped: dict[str, int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclass
class Batch:
    """What the model is fed. Shapes, for B samples:

    inputs["image"] (B, 3, H, W) uint8 · inputs["text"] (B, L) int64 · inputs["audio"] (B, S) float32 waveform;
    masks["text"] (B, L) bool and masks["audio"] (B, S) bool, True where the input is real.
    features[m] (B, T, F) stand in for inputs[m] when a frozen trunk's output was cached; masks[m] is then (B, T).
    present[m] (B,) bool: whether the sample has that modality. ids (B,) int64: equal ids are the same image.
    With K captions of each image, the tensors of text have K·B rows: row r belongs to sample r mod B.
    """

    ids: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(m for m in ("image", "audio", "text") if m in self.inputs or m in self.features)

    def to(self, device: object, non_blocking: bool = False) -> "Batch":
        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.to(device, non_blocking=non_blocking) for k, v in tensors.items()}  # type: ignore[call-overload]

        return replace(
            self,
            ids=self.ids.to(device, non_blocking=non_blocking),  # type: ignore[call-overload]
            inputs=move(self.inputs),
            features=move(self.features),
            masks=move(self.masks),
            present=move(self.present),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.modalities)
