"""Which set a split belongs to, by what it holds: what `zero-shot` must not be claimed of.

A set is known by its images' bytes and by its captions, each under the id of its image: as folder or as shards, moved,
renamed or cut into other splits, it is the same set.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels.errors import UserError
from mm.data import open_split
from mm.data.config import DataConfig
from mm.data.dataset import CaptionDataset, StampedDataset

LIMIT = 4096
"""Items of a kind that stand for a larger split: those whose hash, or whose size's hash, is lowest. A part of the split
that is shared by less than one in so many may be missed."""


@dataclass(frozen=True)
class Collection:
    """A set that a run was trained on.

    Args:
        name: of its training split, such as `scenes/train`.
        folder: where it lay.
        train: the training split's name.
        karpathy: the file of its splits, if any.
        items: hashes of its images and captions, those of the splits on which the run was evaluated too; none where
            nobody noted them.
    """

    name: str
    folder: str
    train: str
    karpathy: str | None = None
    items: frozenset[str] = frozenset()

    @classmethod
    def of(cls, data: DataConfig, datasets: Iterable[CaptionDataset] = ()) -> "Collection":
        """The set that settings name.

        Args:
            data: the settings.
            datasets: its splits, whose items are noted.
        """
        items: set[str] = set()
        for dataset in datasets:
            items |= items_of(dataset)
        folder = data.folder.resolve()
        return cls(f"{folder.name}/{data.train}", str(folder), data.train, data.karpathy, frozenset(items))

    def open(self, split: str) -> CaptionDataset | None:
        """A split of the set where it lay; None where it cannot be opened any more."""
        try:
            return open_split(Path(self.folder), split, karpathy=self.karpathy)
        except (OSError, UserError):
            return None

    def has(self, dataset: CaptionDataset, split: str, folder: Path) -> bool:
        """Whether a split belongs to this set.

        It does if it lies in the same folder, or if an image or a caption of it is among the noted ones, in the
        training split, or in the folder's split of the same name. If nothing was noted and no such split can be opened
        any more, nobody can tell, and the name of the folder decides.

        Args:
            dataset: the split.
            split: its name.
            folder: in which it lies.
        """
        there = Path(self.folder)
        here = folder.resolve()
        if here == there:
            return True
        items = items_of(dataset)
        if items & self.items:
            return True
        opened = bool(self.items)
        for name in dict.fromkeys((self.train, split)):
            other = self.open(name)
            if other is None:
                continue
            opened = True
            if items & items_of(other):
                return True
        return not opened and here.name == there.name


def seen_images(evaluated: CaptionDataset, trained: Iterable[CaptionDataset]) -> int:
    """How many images of a split, by id and any caption, are in any of others."""
    known: set[tuple[int, str]] = set()
    for dataset in trained:
        for image_id, captions in zip(dataset.image_ids, dataset.captions, strict=True):
            known.update((image_id, caption) for caption in captions)
    pairs = zip(evaluated.image_ids, evaluated.captions, strict=True)
    return sum(any((image_id, caption) in known for caption in captions) for image_id, captions in pairs)


def trained_words(training_sets: str, seen: int, zero_shot: bool) -> str:
    """What a model was trained on, in the protocol's words.

    Args:
        training_sets: their names.
        seen: how many of the evaluated images they hold.
        zero_shot: whether these are of another set.
    """
    words = f"zero-shot, trained on {training_sets}" if zero_shot else f"trained on {training_sets}"
    return f"{words}, which has captions of {seen:,} of these images" if seen else words


def items_of(dataset: CaptionDataset) -> set[str]:
    """Hashes of a split's images, by their bytes, and of its captions with the id of their image: `LIMIT` of each."""
    captions: set[str] = set()
    for image_id, several in zip(dataset.image_ids, dataset.captions, strict=True):
        captions.update(_hash(f"{image_id} {caption.strip()}".encode()) for caption in several)
    return _images_of(dataset) | set(sorted(captions)[:LIMIT])


def _images_of(dataset: CaptionDataset) -> set[str]:
    """Hashes of image files. Which of many are read is decided by their sizes: the same ones wherever they lie."""
    if not isinstance(dataset, StampedDataset):
        return set()
    sized = []
    for index, there in enumerate(dataset.has_image):
        if there:
            size = dataset.size("image", index)
            sized.append((_hash(str(size).encode()), index))
    chosen: Sequence[tuple[str, int]] = sorted(sized)[:LIMIT]
    return {_hash(dataset.content("image", index)) for _, index in chosen}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
