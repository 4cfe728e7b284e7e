"""What a split on disk is, whoever reads it."""

from typing import Protocol

from mm.batch import Sample


class CaptionDataset(Protocol):
    """A split: random access by position, captions readable without decoding an image or an audio clip."""

    name: str
    image_ids: list[int]
    captions: list[tuple[str, ...]]
    caption_ids: list[tuple[int, ...]]
    modalities: frozenset[str]
    has_audio: list[bool]
    skipped: dict[str, int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
