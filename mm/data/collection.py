"""Whether two folders hold the same collection: what `zero-shot` must not be claimed of."""

from pathlib import Path

from mm.data import open_split
from mm.data.config import DataConfig
from mm.data.dataset import CaptionDataset


def same_collection(evaluated: CaptionDataset, split: str, read: DataConfig, trained: DataConfig) -> bool:
    """Whether a split that was read by `read` belongs to what a run was trained on by `trained`.

    It does if it lies in the same folder, or if an image of it, by id and any caption, is among the training images or
    in that folder's split of the same name: a copy, the same set as shards or with speech, with fewer captions. If no
    such split can be opened any more, nobody can tell, and the name of the folder decides.
    """
    here = Path(read.folder).resolve()
    there = Path(trained.folder).resolve()
    if here == there:
        return True
    opened = False
    for name in dict.fromkeys((trained.train, split)):
        other = split_if_there(trained, name)
        if other is None:
            continue
        opened = True
        if seen_images(evaluated, other):
            return True
    return not opened and here.name == there.name


def split_if_there(trained: DataConfig, name: str) -> CaptionDataset | None:
    """A split of the data that a run was trained on; None where it cannot be opened any more."""
    try:
        return open_split(Path(trained.folder).resolve(), name, karpathy=trained.karpathy)
    except (OSError, ValueError):
        return None


def seen_images(evaluated: CaptionDataset, trained: CaptionDataset) -> int:
    """How many images of a split, by id and any caption, are in another one."""
    known: set[tuple[int, str]] = set()
    for image_id, captions in zip(trained.image_ids, trained.captions, strict=True):
        known.update((image_id, caption) for caption in captions)
    pairs = zip(evaluated.image_ids, evaluated.captions, strict=True)
    return sum(any((image_id, caption) in known for caption in captions) for image_id, captions in pairs)


def trained_words(training_set: str, seen: int, zero_shot: bool) -> str:
    """What a model was trained on, in the protocol's words.

    Args:
        training_set: its name.
        seen: how many of the evaluated images it holds.
        zero_shot: whether they are of another collection.
    """
    words = f"zero-shot, trained on {training_set}" if zero_shot else f"trained on {training_set}"
    return f"{words}, which has captions of {seen:,} of these images" if seen else words
