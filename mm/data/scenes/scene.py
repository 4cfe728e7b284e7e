"""What a scene is: two to four objects on a background, as facts. Image, captions and audio are functions of it.

A scene is a pure function of (seed, split, index). Only `numpy.random.SeedSequence` is used, whose output is fixed by
NumPy for good (NEP 19), never a `Generator`, whose methods may change their streams between releases.

Composition is measured as in CLEVR-CoGenT (Johnson et al., 2017): some pairs of attributes never occur in `train` and
`seen`; every scene of `val` and `test` has at least one object with such a pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "moon")
TEXTURES = ("solid", "striped", "dotted", "checked")
SIZES = ("small", "large")
ROWS = ("top", "middle", "bottom")
BACKGROUNDS = ("black", "white", "gray", "brown")
COUNTS = (2, 3, 4)

RADIUS = {"small": 0.11, "large": 0.155}
"""Radius of an object, as a fraction of the image's side."""
SPACING = {2: (0.4, 0.06), 3: (0.325, 0.005), 4: (0.23, 0.004)}
"""Number of objects -> how far apart they stand from left to right, and by how much each may be off its place."""
ROW_SPACING = 0.31
"""How far apart the rows are; like SPACING, in fractions of the image's side."""

HELD_OUT_COLOUR_SHAPE = frozenset(
    {
        ("red", "star"),
        ("orange", "circle"),
        ("yellow", "ring"),
        ("green", "heart"),
        ("cyan", "triangle"),
        ("blue", "moon"),
        ("purple", "square"),
        ("pink", "cross"),
    }
)
HELD_OUT_TEXTURE_SHAPE = frozenset(
    {("solid", "cross"), ("striped", "circle"), ("dotted", "triangle"), ("checked", "moon")}
)

SPLITS = {"train": 0, "val": 1, "test": 2, "seen": 3}
"""Each split's number in the seed sequence. `seen`: no held-out pair, yet new scenes, to measure the gap by."""
HELD_OUT_SPLITS = frozenset({"val", "test"})
FROM_THE_BACK = frozenset({"seen", "test"})
"""The splits that read the permutation of cells, which they share with `train` or `val`, from its end."""


class Look(NamedTuple):
    """What an object looks like, apart from its size and place."""

    colour: str
    shape: str
    texture: str

    @property
    def held_out(self) -> bool:
        """Whether a model trained on `train` has never seen this combination."""
        colour, shape, texture = self
        if (colour, shape) in HELD_OUT_COLOUR_SHAPE:
            return True
        return (texture, shape) in HELD_OUT_TEXTURE_SHAPE


LOOKS = tuple(Look(*look) for look in product(COLOURS, SHAPES, TEXTURES))
SEEN_LOOKS = tuple(look for look in LOOKS if not look.held_out)


@dataclass(frozen=True)
class SceneObject:
    """One object. `row` is the fact; `x`, `y` (fractions of the side, y downwards) are where exactly it was drawn."""

    look: Look
    size: str
    row: str
    x: float
    y: float

    @property
    def facts(self) -> tuple[str, ...]:
        """Colour, shape, texture, size and row."""
        return (*self.look, self.size, self.row)


@dataclass(frozen=True)
class Relation:
    """Object number `subject` is `kind` ("left of", "right of", "above", "below") object number `anchor`."""

    subject: int
    kind: str
    anchor: int


@dataclass(frozen=True)
class Scene:
    """Objects from left to right (x rises), the background, and the one relation that the captions state."""

    objects: tuple[SceneObject, ...]
    background: str
    relation: Relation

    @property
    def facts(self) -> tuple[tuple[str, ...] | str, ...]:
        """Everything there is to know, apart from where exactly an object was drawn; hashable."""
        return (self.background, *(thing.facts for thing in self.objects))

    @property
    def held_out(self) -> bool:
        """Whether one of its objects has a look that `train` never shows."""
        return any(thing.look.held_out for thing in self.objects)


def capacity(split: str) -> int:
    """How many scenes a split can have. Raises ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    cells = len(_cells(split in HELD_OUT_SPLITS))
    from_the_back = cells // 8
    return from_the_back if split in FROM_THE_BACK else cells - from_the_back


def scene_at(seed: int, split: str, index: int) -> Scene:
    """Scene number `index` of a split. No two scenes of one seed, in one split or in two, have the same facts.

    The background and the two leftmost looks come from one seeded permutation of all there are, read from the front by
    `train` (`val`) and from the back by `seen` (`test`), which makes them distinct; all else is drawn independently.
    Raises ValueError for an unknown split, a negative seed, or an index outside `capacity(split)`.
    """
    most = capacity(split)
    if not 0 <= index < most:
        raise ValueError(f"scene {index} of {split!r} does not exist: the split has at most {most} scenes")
    held_out = split in HELD_OUT_SPLITS
    position = -1 - index if split in FROM_THE_BACK else index
    cell = _order(seed, held_out)[position]
    background, first, second = _cells(held_out)[cell]
    draws = Draws(seed, SPLITS[split], index)
    looks = [LOOKS[first], LOOKS[second]]
    choice = LOOKS if held_out else SEEN_LOOKS
    count = draws.pick(COUNTS)
    while len(looks) < count:
        looks.append(draws.pick(choice))
    objects = _placed(looks, draws)
    relation = _relation(objects, draws)
    return Scene(objects, BACKGROUNDS[background], relation)


class Draws:
    """A short stream of draws, a function of its key and of nothing else."""

    def __init__(self, *key: int) -> None:
        words = np.random.SeedSequence(key).generate_state(128)
        self._words = iter(words.tolist())

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        word = next(self._words)
        return options[word % len(options)]

    def offset(self, reach: float) -> float:
        """In [-reach, reach)."""
        word = next(self._words)
        return reach * (word / 2**31 - 1)


def _placed(looks: list[Look], draws: Draws) -> tuple[SceneObject, ...]:
    """Give each look a size and a place such that no two touch: neighbours that are too wide get different rows."""
    spacing, reach = SPACING[len(looks)]
    middle = (len(looks) - 1) / 2
    objects: list[SceneObject] = []
    for column, look in enumerate(looks):
        size = draws.pick(SIZES)
        x = 0.5 + (column - middle) * spacing + draws.offset(reach)
        rows = list(ROWS)
        if objects:
            before = objects[-1]
            radii = RADIUS[size] + RADIUS[before.size]
            if x - before.x < radii:
                rows.remove(before.row)
        row = draws.pick(rows)
        level = ROWS.index(row) - 1
        y = 0.5 + level * ROW_SPACING + draws.offset(0.02)
        objects.append(SceneObject(look, size, row, x, y))
    return tuple(objects)


def _relation(objects: tuple[SceneObject, ...], draws: Draws) -> Relation:
    """One of the relations that hold between two of the objects."""
    pairs = list(permutations(range(len(objects)), 2))
    subject, anchor = draws.pick(pairs)
    kinds = ["left of" if subject < anchor else "right of"]
    row = ROWS.index(objects[subject].row)
    rise = ROWS.index(objects[anchor].row) - row
    if rise:
        kinds.append("above" if rise > 0 else "below")
    return Relation(subject, draws.pick(kinds), anchor)


@lru_cache
def _cells(held_out: bool) -> np.ndarray:
    """(N, 3) background, first look, second look: all with a held-out look among the two, or all with none."""
    novel = np.array([look.held_out for look in LOOKS])
    either = novel[:, None] | novel[None, :]
    pairs = np.argwhere(either == held_out)
    cells = []
    for background in range(len(BACKGROUNDS)):
        cells.append(np.insert(pairs, 0, background, axis=1))
    return np.concatenate(cells)


@lru_cache(maxsize=8)
def _order(seed: int, held_out: bool) -> np.ndarray:
    """(N,) the seed's permutation of the cells."""
    count = len(_cells(held_out))
    source = np.random.SeedSequence((seed, held_out))
    keys = source.generate_state(count, np.uint64)
    return np.argsort(keys, kind="stable")
