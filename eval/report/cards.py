"""Queries that a run answers best, as usual and worst, with what it retrieved: distinct ones, no image twice."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from eval.report.markup import EMPTY, card, found, grid, image, item, joined, note, player, subheading
from eval.report.media import Clip, photo, spectrogram
from eval.retrieval import RetrievalResult, top_k

IDS = {"image": "image_ids", "text": "caption_image_ids", "audio": "audio_image_ids"}
SHOWN = {"text": 3, "audio": 3, "image": 4}
"""Modality -> how many retrieved items a card shows."""
SMALL = 120  # pixels
TONES = {"best": "good", "usual": "open", "worst": "bad"}
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
    clip: Callable[[int], Clip | None] = lambda image_id: None
    """Image id -> audio, None where there is none."""
    count: int = 3
    """Best, usual and worst queries of a direction, this many each."""


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
    both = []
    for own, other in ((a, b), (b, a)):
        ids = vectors[IDS[own]]
        rows = np.flatnonzero(np.isin(ids, vectors[IDS[other]]))
        both.append(Side(own, vectors[own][rows], ids[rows], rows))
    x, y = both
    return (x, y) if len(x.ids) else None


@dataclass(frozen=True)
class Query:
    """A query that is shown."""

    position: int
    kind: str
    """`best`, `usual` or `worst`."""


@dataclass(frozen=True)
class Retrieved:
    """The best of the gallery for some queries."""

    scores: np.ndarray
    """(Q, k), descending."""
    positions: np.ndarray
    """(Q, k) in the gallery."""

    @classmethod
    def of(cls, queries: np.ndarray, gallery: np.ndarray, depth: int) -> "Retrieved":
        """Of vectors (Q, D) among (G, D)."""
        scores, positions = top_k(queries, gallery, depth)
        return cls(scores.numpy(), positions.numpy())

    def margins(self, place: int) -> np.ndarray:
        """(Q,) by how much the first scores above the one at `place`."""
        return self.scores[:, 0] - self.scores[:, place]

    def of_query(self, position: int) -> Iterator[tuple[int, float]]:
        """Positions in the gallery and their scores."""
        return zip(self.positions[position].tolist(), self.scores[position].tolist(), strict=True)


def gallery_of(asking: Side, asked: Side, result: RetrievalResult, examples: Examples, taken: set[int]) -> Markup:
    """Queries of one modality with what they retrieve of another, under a heading.

    Args:
        asking: the queries.
        asked: the gallery.
        result: of this direction, its queries in the order of `asking`.
        examples: what is shown.
        taken: ids of images that are not asked about again; those that are shown are added.
    """
    depth = min(SHOWN[asked.modality], len(asked.ids))
    retrieved = Retrieved.of(asking.vectors, asked.vectors, depth)
    # Captions of one image stand together at the top: their margin is taken to the last one that is shown.
    place = min(1, depth - 1) if asked.modality == "image" else depth - 1
    cards = []
    for query in chosen(asking, result, retrieved.margins(place), examples.count, taken):
        rank = result.ranks[query.position]
        title = f"{query.kind.capitalize()}: first match at rank {rank:,.7g} of {len(asked.ids):,}"
        own = int(asking.ids[query.position])
        items = [shown_item(asked, at, score, own, examples) for at, score in retrieved.of_query(query.position)]
        missed = rank > depth and asking.modality != "audio"  # whose caption stands below its player
        body = joined(
            [
                shown_query(asking, query.position, examples),
                found(items, images=asked.modality == "image"),
                own_partner(asked.modality, own, examples) if missed else EMPTY,
            ]
        )
        cards.append(card(title, body, TONES[query.kind]))
    heading = subheading(f"{asking.modality.capitalize()} → {asked.modality}: best, usual and worst")
    return heading + grid(cards)


def shown_query(asking: Side, position: int, examples: Examples) -> Markup:
    """The query itself: an image whole, a clip to be heard, a caption in words."""
    own = int(asking.ids[position])
    name = asking.name(position, examples)
    clip = examples.clip(own) if asking.modality == "audio" else None
    if clip is not None:
        shown = player(clip.uri, spectrogram(clip.spectrogram), examples.describe(own) or name)
        return Markup('<div class="query">{}{}</div>').format(shown, note(name))
    picture = examples.thumbnail(own) if asking.modality == "image" else None
    if picture is not None:
        return Markup('<div class="query">{}</div>').format(image(photo(picture), f"query: {name}"))
    return Markup('<div class="query"><blockquote>{}</blockquote></div>').format(name)


def shown_item(asked: Side, position: int, score: float, own: int, examples: Examples) -> Markup:
    """A retrieved item: an image itself, anything else in words."""
    image_id = int(asked.ids[position])
    name = asked.name(position, examples)
    picture = examples.thumbnail(image_id) if asked.modality == "image" else None
    shown = name if picture is None else image(photo(picture, SMALL), f"retrieved: {name}")
    return item(shown, image_id == own, f"{score:.3f}")


def own_partner(modality: str, own: int, examples: Examples) -> Markup:
    """What would have been right, where it is not among what is shown."""
    picture = examples.thumbnail(own) if modality == "image" else None
    if picture is not None:
        return note("Right would have been:") + Markup('<div class="thumbs">{}</div>').format(
            image(photo(picture, SMALL), f"the query's own image {own}")
        )
    caption = examples.describe(own)
    return note(f"Right would have been: {caption}") if caption else EMPTY


def chosen(asking: Side, result: RetrievalResult, margins: np.ndarray, count: int, taken: set[int]) -> list[Query]:
    """The best queries (rank 1 by the widest margin), those around the median, and the worst (largest rank).

    Queries of images that are taken, or of an image that another query here is of, are passed over.

    Args:
        asking: the queries.
        result: of the direction.
        margins: (Q,) score of the first retrieved item minus that of a later one.
        count: of each kind.
        taken: ids of images; those that are chosen are added.
    """
    order = np.lexsort((-margins, result.ranks)).tolist()
    middle = len(order) // 2
    around = sorted(range(len(order)), key=lambda place: abs(place - middle))
    candidates = {"best": order, "worst": order[::-1], "usual": [order[place] for place in around]}
    queries: dict[str, list[Query]] = {}
    for kind, positions in candidates.items():
        queries[kind] = []
        for position in positions:
            own = int(asking.ids[position])
            if len(queries[kind]) == count:
                break
            if own not in taken:
                taken.add(own)
                queries[kind].append(Query(position, kind))
    return [*queries["best"], *queries["usual"], *queries["worst"]]
