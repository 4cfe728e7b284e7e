"""Pairs for image-text matching: every caption with its image, and with one image that it does not describe.

The non-match is drawn (a) at random or (b) from the images that a named frozen retriever ranks first. What any ground
truth calls a match is never drawn.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from kernels.errors import UserError

HARD_FROM = 20
"""Images of a retriever's shortlist."""
TRIES = 64
Known = Collection[tuple[int, int]]
"""(image id, caption id) pairs that are matches in any ground truth (`GroundTruth.positives`)."""


@dataclass(frozen=True)
class PairSet:
    """One non-match for every match: caption text[i] belongs to image[i] and not to negative[i]."""

    image: np.ndarray
    """(P,) positions in the images."""
    text: np.ndarray
    """(P,) positions in the captions."""
    negative: np.ndarray
    """(P,) positions in the images."""
    negatives: str
    """Where the negatives are from."""


@dataclass(frozen=True)
class Matchable:
    """What pairs are drawn from."""

    image_ids: np.ndarray
    """(N,)."""
    text_ids: np.ndarray
    """(M,) the image of each caption."""
    caption_ids: np.ndarray | None = None
    """(M,), by which `known` names captions."""
    known: Known = ()
    """Further matches."""

    def __post_init__(self) -> None:
        if self.known and self.caption_ids is None:
            raise UserError("known matches are named by caption id: pass caption_ids too")


def random_pairs(items: Matchable, seed: int = 0) -> PairSet:
    """(a): every caption with its image and with one image drawn at random among those it does not describe."""
    everything = np.arange(len(items.image_ids))
    shape = (len(items.text_ids), len(everything))
    return _draw(items, np.broadcast_to(everything, shape), "random", seed)


def hard_pairs(items: Matchable, shortlist: np.ndarray, retriever: str, seed: int = 0) -> PairSet:
    """(b): the non-match is drawn from a frozen retriever's shortlist.

    Args:
        items: what pairs are drawn from. Captions whose whole shortlist is matches are skipped.
        shortlist: (M, 20) positions of the images that the retriever ranks first for each caption.
        retriever: its name.
        seed: of the draws.

    Raises:
        ValueError: without a name, or where the shortlist is for another number of captions.
    """
    if not retriever:
        raise ValueError("hard negatives need the name of the frozen retriever that chose them")
    if shortlist.shape[0] != len(items.text_ids):
        raise ValueError(f"the shortlist is for {shortlist.shape[0]} captions, not {len(items.text_ids)}")
    return _draw(items, shortlist, f"top {shortlist.shape[1]} of {retriever}", seed)


def _draw(items: Matchable, candidates: np.ndarray, negatives: str, seed: int) -> PairSet:
    """One candidate per caption that is no match, by drawing until one is no match; captions with none are skipped."""
    generator = np.random.default_rng(seed)
    matches = _matches_of_captions(items)
    sorter = np.argsort(items.image_ids)
    own = sorter[np.searchsorted(items.image_ids[sorter], items.text_ids)]
    image, text, negative = [], [], []
    for caption, matching in enumerate(matches):
        for choice in _in_random_order(generator, candidates[caption]):
            if int(items.image_ids[choice]) not in matching:
                image.append(own[caption])
                text.append(caption)
                negative.append(int(choice))
                break
    if not text:
        raise UserError("no caption has a non-match among its candidates")
    return PairSet(np.array(image), np.array(text), np.array(negative), negatives)


def _matches_of_captions(items: Matchable) -> list[set[int]]:
    """Of each caption the ids of the images that match it: its own and the known ones."""
    by_caption: dict[int, set[int]] = {}
    for image, caption in items.known:
        by_caption.setdefault(caption, set()).add(image)
    found = [{image} for image in items.text_ids.tolist()]
    if items.caption_ids is not None:
        for at, caption in enumerate(items.caption_ids.tolist()):
            found[at] |= by_caption.get(caption, set())
    return found


def _in_random_order(generator: np.random.Generator, candidates: np.ndarray) -> np.ndarray:
    """A long list is sampled, not permuted: that `TRIES` draws are all matches does not happen by chance."""
    if len(candidates) <= TRIES:
        return generator.permutation(candidates)
    return candidates[generator.integers(0, len(candidates), TRIES)]
