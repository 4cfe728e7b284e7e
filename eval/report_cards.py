"""The cards of `eval.report`: queries that a run answers best and worst, with what it retrieved."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from eval.plots import photo_uri
from eval.retrieval import RetrievalResult, top_k

SHOWN_CAPTIONS = 5
SHOWN_IMAGES = 4
SMALL = 120  # pixels
Vectors = Mapping[str, np.ndarray]
"""The arrays of embeddings.npz."""


@dataclass(frozen=True)
class Examples:
    """What cards show beside numbers."""

    captions: Sequence[str]
    """(M,) parallel to the text vectors."""
    thumbnail: Callable[[int], Image.Image]
    """Image id -> image."""
    count: int = 4
    """Best and worst queries of a direction, this many each."""


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


def image_cards(vectors: Vectors, result: RetrievalResult, examples: Examples) -> dict[str, Any]:
    """Images with the captions that they retrieve.

    Args:
        vectors: the arrays of embeddings.npz.
        result: image to text.
        examples: what is shown.
    """
    depth = min(SHOWN_CAPTIONS, len(examples.captions))
    found = _Found.of(vectors["image"], vectors["text"], depth)
    cards = []
    for query in _extremes(result, found.margins(depth - 1), examples.count):
        image_id = int(vectors["image_ids"][query.position])
        texts = []
        for at, score in found.of_query(query):
            right = int(vectors["caption_image_ids"][at]) == image_id
            texts.append({"text": examples.captions[at], "right": right, "score": f"{score:.3f}"})
        card = _card(query, result, f"image {image_id}", examples.thumbnail(image_id))
        cards.append(card | {"texts": texts})
    return {
        "title": "Image to text: best and worst",
        "cards": cards,
        "note": "Green: found first, by the widest margin. Red: the first match stands lowest. Top five captions.",
    }


def text_cards(vectors: Vectors, result: RetrievalResult, examples: Examples) -> dict[str, Any]:
    """Captions with the images that they retrieve.

    Args:
        vectors: the arrays of embeddings.npz.
        result: text to image.
        examples: what is shown.
    """
    depth = min(SHOWN_IMAGES, len(vectors["image"]))
    found = _Found.of(vectors["text"], vectors["image"], depth)
    cards = []
    for query in _extremes(result, found.margins(min(1, depth - 1)), examples.count):
        own = int(vectors["caption_image_ids"][query.position])
        images = []
        for at, score in found.of_query(query):
            image_id = int(vectors["image_ids"][at])
            source = photo_uri(examples.thumbnail(image_id), SMALL)
            images.append({"source": source, "score": f"{score:.3f}", "right": image_id == own})
        caption = examples.captions[query.position]
        card = _card(query, result, caption, examples.thumbnail(own))
        cards.append(card | {"images": images})
    return {
        "title": "Text to image: best and worst",
        "cards": cards,
        "note": "The large image is the caption's own; below it the four images that were retrieved.",
    }


def _card(query: _Query, result: RetrievalResult, text: str, image: Image.Image) -> dict[str, Any]:
    """The query itself, with its image and the rank of its best match."""
    rank = result.ranks[query.position]
    return {
        "image": photo_uri(image),
        "query": text,
        "good": query.good,
        "rank": f"{rank:g}",
    }


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
