"""The cards of `eval.report`: queries that a run answers best and worst, with what it retrieved."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from eval.plots import photo_uri
from eval.retrieval import RetrievalResult, top_k

IDS = {"image": "image_ids", "text": "caption_image_ids", "audio": "audio_image_ids"}
SHOWN = {"text": 5, "audio": 5, "image": 4}
"""Modality -> how many retrieved items a card shows."""
SMALL = 120  # pixels
Vectors = Mapping[str, np.ndarray]
"""The arrays of embeddings.npz."""


@dataclass(frozen=True)
class Examples:
    """What cards show beside numbers."""

    captions: Sequence[str]
    """(M,) parallel to the text vectors."""
    thumbnail: Callable[[int], Image.Image | None]
    """Image id -> image, None where there is none."""
    describe: Callable[[int], str] = lambda image_id: ""
    """Image id -> a caption, which stands beside audio."""
    count: int = 4
    """Best and worst queries of a direction, this many each."""


@dataclass(frozen=True)
class Side:
    """One modality of a pair: its items that have a partner in the other one, N of them."""

    modality: str
    vectors: np.ndarray
    """(N, D)."""
    ids: np.ndarray
    """(N,) the image of each."""
    rows: np.ndarray
    """(N,) where each stands in embeddings.npz."""

    def name(self, position: int, examples: Examples) -> str:
        """An item in words."""
        image_id = int(self.ids[position])
        if self.modality == "text":
            return examples.captions[self.rows[position]]
        if self.modality == "image":
            return f"image {image_id}"
        caption = examples.describe(image_id)
        return f"audio {image_id}: {caption}" if caption else f"audio {image_id}"


def sides_of(vectors: Vectors, a: str, b: str) -> tuple[Side, Side] | None:
    """Both modalities of a pair, on the items that have a partner; None where there are none."""
    if a not in vectors or b not in vectors:
        return None
    found = []
    for own, other in ((a, b), (b, a)):
        ids = vectors[IDS[own]]
        rows = np.flatnonzero(np.isin(ids, vectors[IDS[other]]))
        found.append(Side(own, vectors[own][rows], ids[rows], rows))
    x, y = found
    return (x, y) if len(x.ids) else None


@dataclass(frozen=True)
class _Query:
    """A query that is shown."""

    position: int
    good: bool
    """Whether it is one of the best."""


@dataclass(frozen=True)
class _Found:
    """The best of the gallery for every query."""

    scores: np.ndarray
    """(Q, k), descending."""
    positions: np.ndarray
    """(Q, k) in the gallery."""

    @classmethod
    def of(cls, queries: np.ndarray, gallery: np.ndarray, depth: int) -> "_Found":
        scores, positions = top_k(queries, gallery, depth)
        return cls(scores.numpy(), positions.numpy())

    def margins(self, place: int) -> np.ndarray:
        """(Q,) by how much the first scores above the one at `place`."""
        return self.scores[:, 0] - self.scores[:, place]

    def of_query(self, query: _Query) -> Iterator[tuple[int, float]]:
        """Positions in the gallery and their scores."""
        positions = self.positions[query.position]
        scores = self.scores[query.position]
        return zip(positions.tolist(), scores.tolist(), strict=True)


def cards_of(asking: Side, asked: Side, result: RetrievalResult, examples: Examples) -> dict[str, Any]:
    """Queries of one modality with what they retrieve of another.

    Args:
        asking: the queries.
        asked: the gallery.
        result: of this direction, its queries in the order of `asking`.
        examples: what is shown.

    Returns:
        title, cards and note, as the template takes them.
    """
    depth = min(SHOWN[asked.modality], len(asked.ids))
    found = _Found.of(asking.vectors, asked.vectors, depth)
    # Captions of one image stand together at the top: their margin is taken to the last one that is shown.
    place = min(1, depth - 1) if asked.modality == "image" else depth - 1
    cards = []
    for query in _extremes(result, found.margins(place), examples.count):
        own = int(asking.ids[query.position])
        image = examples.thumbnail(own)
        retrieved = [_shown(asked, at, score, own, examples) for at, score in found.of_query(query)]
        card = {
            "image": photo_uri(image) if image is not None else "",
            "query": asking.name(query.position, examples),
            "good": query.good,
            "rank": f"{result.ranks[query.position]:g}",
            "images" if asked.modality == "image" else "texts": retrieved,
        }
        cards.append(card)
    return {
        "title": f"{asking.modality.capitalize()} to {asked.modality}: best and worst",
        "cards": cards,
        "note": "Green: found first, by the widest margin. Red: the first match stands lowest. The large image is the"
        f" query's own; below it the first {depth} that were retrieved.",
    }


def _shown(asked: Side, position: int, score: float, own: int, examples: Examples) -> dict[str, Any]:
    """A retrieved item: an image itself, anything else in words."""
    image_id = int(asked.ids[position])
    item = {"right": image_id == own, "score": f"{score:.3f}"}
    if asked.modality != "image":
        return item | {"text": asked.name(position, examples)}
    image = examples.thumbnail(image_id)
    return item | {"source": photo_uri(image, SMALL) if image is not None else ""}


def _extremes(result: RetrievalResult, margins: np.ndarray, count: int) -> list[_Query]:
    """The best queries (rank 1 by the widest margin) and the worst (largest rank), without repeats.

    Args:
        result: of the direction.
        margins: (Q,) score of the first retrieved item minus that of a later one.
        count: of the best and of the worst.
    """
    order = np.lexsort((-margins, result.ranks)).tolist()
    best = order[:count]
    found = [_Query(position, good=True) for position in best]
    for position in order[::-1][:count]:
        if position not in best:
            found.append(_Query(position, good=False))
    return found
