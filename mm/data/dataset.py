"""What a split on disk is, whoever reads it, and how one split is told from another without reading it."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from kernels.errors import UserError
from mm.batch import Sample
from mm.data.skipped import Unreadable
from mm.files import private_name

TRIED = 16
"""How many samples of a split are read before a run begins."""


class CaptionDataset(Protocol):
    """A split: random access by position, captions readable without decoding an image or an audio clip."""

    name: str
    image_ids: list[int]
    captions: list[tuple[str, ...]]
    caption_ids: list[tuple[int, ...]]
    modalities: frozenset[str]
    has_image: list[bool]
    has_audio: list[bool]
    skipped: dict[str, int]
    """What could not be used, by reason: known at opening, and files that were found since not to decode."""
    unreadable: Unreadable

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def presence(dataset: CaptionDataset, source: str) -> list[bool]:
    """Which samples have an image, audio or captions, by position.

    Args:
        dataset: a split.
        source: `image`, `audio` or `text`.
    """
    if source == "text":
        return [bool(captions) for captions in dataset.captions]
    return dataset.has_image if source == "image" else dataset.has_audio


@runtime_checkable
class StampedDataset(CaptionDataset, Protocol):
    """A split that tells what its files hold: what is made of them can be kept, and found again by the stamp."""

    def stamp(self, source: str) -> str:
        """What the files of a modality hold, position by position: another one once any of them is replaced.

        Files count by size and time of their last change, not by name, and are not read.

        Args:
            source: `image` or `audio`.
        """

    def size(self, source: str, index: int) -> int:
        """How many bytes the file of a sample's image or audio has; not of a sample that lacks it."""

    def content(self, source: str, index: int) -> bytes:
        """These bytes."""


def content_stamp(dataset: StampedDataset, source: str, cache: Path) -> str:
    """What the files of a modality hold, byte by byte, whether they lie in a folder or in shards.

    They are read once: what they held is kept in the cache under the stamp of their sizes and times of change.

    Args:
        dataset: the split.
        source: `image` or `audio`.
        cache: folder for what was found.
    """
    note = cache / "contents" / f"{source}-{dataset.stamp(source)}"
    if note.is_file():
        return note.read_text()
    digest = hashlib.sha256()
    for index, there in enumerate(presence(dataset, source)):
        held = hashlib.sha256(dataset.content(source, index)).digest() if there else b"none"
        digest.update(held)
    found = digest.hexdigest()[:16]
    note.parent.mkdir(parents=True, exist_ok=True)
    private = private_name(note)
    private.write_text(found)
    private.replace(note)
    return found


def noted(dataset: CaptionDataset, index: int, sample: Sample) -> Sample:
    """The sample, whose image or audio the dataset has no longer if its file did not decode.

    Args:
        dataset: whose sample it is.
        index: its position.
        sample: as it was read.
    """
    if sample.image is None:
        dataset.has_image[index] = False
    if sample.audio is None:
        dataset.has_audio[index] = False
    return sample


def require_readable(dataset: CaptionDataset) -> None:
    """Read a few samples of a split, so that one that cannot be read ends a run before it begins.

    Args:
        dataset: the split.

    Raises:
        ValueError: more than half of the images or audio clips that were tried do not decode.
    """
    known = set(dataset.unreadable.files)
    decoded: Counter[str] = Counter()
    last = len(dataset) - 1
    for index in sorted({round(share * last) for share in np.linspace(0, 1, TRIED)}):
        sample = dataset[index]
        decoded["image"] += sample.image is not None
        decoded["audio"] += sample.audio is not None
    failed: dict[str, list[str]] = {"image": [], "audio": []}
    for file, (modality, reason) in dataset.unreadable.files.items():
        if file not in known:
            failed[modality].append(reason)
    for modality, reasons in failed.items():
        if len(reasons) > decoded[modality]:
            tried = len(reasons) + decoded[modality]
            raise UserError(
                f"{dataset.name}: {len(reasons)} of {tried} {modality} files that were tried do not decode, the first:"
                f" {reasons[0]}"
            )


def files_stamp(files: Iterable[Path | None], places: Sequence[object] = ()) -> str:
    """A short name for what files hold, by their sizes and times of change: 16 hexadecimal digits of a SHA-256.

    Args:
        files: in the order in which they are read; None where a sample has none.
        places: where in the files the samples lie, if a file holds several.

    Raises:
        FileNotFoundError: a file is gone.
    """
    digest = hashlib.sha256()
    for file in files:
        line = "none\n"
        if file is not None:
            held = file.stat()
            line = f"{held.st_size} {held.st_mtime_ns}\n"
        digest.update(line.encode())
    for place in places:
        digest.update(f"{place}\n".encode())
    return digest.hexdigest()[:16]
