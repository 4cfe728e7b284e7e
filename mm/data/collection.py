"""Whether two folders hold the same collection: what `zero-shot` must not be claimed of."""

from pathlib import Path

from mm.data import open_split
from mm.data.config import DataConfig
from mm.data.dataset import CaptionDataset


def same_collection(evaluated: CaptionDataset, split: str, read: DataConfig, trained: DataConfig) -> bool:
    """Whether a split that was read by `read` belongs to what a run was trained on by `trained`.

    It does if it lies in the same folder, or if an image of it, by id and captions, is among the training images or in
    that folder's split of the same name: a copy, the same set as shards or with speech. If no such split can be opened
    any more, nobody can tell, and the name of the folder decides.
    """
    here = Path(read.folder).resolve()
    there = Path(trained.folder).resolve()
    if here == there:
        return True
    images = _images(evaluated)
    opened = False
    for name in dict.fromkeys((trained.train, split)):
        try:
            other = open_split(there, name, karpathy=trained.karpathy)
        except (OSError, ValueError):
            continue
        opened = True
        if images & _images(other):
            return True
    return not opened and here.name == there.name


def _images(dataset: CaptionDataset) -> set[tuple[int, tuple[str, ...]]]:
    """The images of a dataset by (id, captions)."""
    return set(zip(dataset.image_ids, dataset.captions, strict=True))
