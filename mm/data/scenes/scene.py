"""What a scene is: two to four objects on a background, as facts. Image, captions and audio are functions of it.

A scene is a pure function of (seed, split, index). Only `numpy.random.SeedSequence` is used, whose output is fixed by
NumPy for good (NEP 19), never a `Generator`, whose methods may change their streams between releases.

Composition is measured as in CLEVR-CoGenT (Johnson et al., 2017): some pairs of attributes never occur in `train` and
`seen`; every scene of `val` and `test` has at least one object with such a pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
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


class Look(NamedTuple):
    """What an object looks like, apart from its size and place."""

    colour: str
    shape: str
    texture: str

    @property
    def held_out(self) -> bool:
        """Whether a model trained on `train` has never seen this combination."""
        colour, shape, texture = self
        return (colour, shape) in HELD_OUT_COLOUR_SHAPE or (texture, shape) in HELD_OUT_TEXTURE_SHAPE


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
        return any(thing.look.held_out for thing in self.objects)


def capacity(split: str) -> int:
    """How many scenes a split can have."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    cells = len(_cells(split in HELD_OUT_SPLITS))
    return cells // 8 if split in ("seen", "test") else cells - cells // 8


def scene_at(seed: int, split: str, index: int) -> Scene:
    """Scene number `index` of a split. No two scenes of one seed, in one split or in two, have the same facts.

    The background and the two leftmost looks come from one seeded permutation of all there are, read from the front by
    `train` (`val`) and from the back by `seen` (`test`), which makes them distinct; all else is drawn independently.
    Raises ValueError for an unknown split, a negative seed, or an index outside `capacity(split)`.
    """
    if not 0 <= index < capacity(split):
        raise ValueError(f"scene {index} of {split!r} does not exist: the split has at most {capacity(split)} scenes")
    held_out = split in HELD_OUT_SPLITS
    position = index if split in ("train", "val") else -1 - index
    background, first, second = _cells(held_out)[_order(seed, held_out)[position]]
    draws = Draws(seed, SPLITS[split], index)
    count = draws.pick(COUNTS)
    extra = [draws.pick(LOOKS if held_out else SEEN_LOOKS) for _ in range(count - 2)]
    objects = _placed([LOOKS[first], LOOKS[second], *extra], draws)
    return Scene(objects, BACKGROUNDS[background], _relation(objects, draws))


class Draws:
    """A short stream of draws, a function of its key and of nothing else."""

    def __init__(self, *key: int) -> None:
        self._words = iter(np.random.SeedSequence(key).generate_state(128).tolist())

    def pick(self, options: Sequence[T]) -> T:
        return options[next(self._words) % len(options)]

    def offset(self, reach: float) -> float:
        """In [-reach, reach)."""
        return reach * (next(self._words) / 2**31 - 1)


def _placed(looks: list[Look], draws: Draws) -> tuple[SceneObject, ...]:
    """Give each look a size and a place such that no two touch: neighbours that are too wide get different rows."""
    spacing, reach = {2: (0.4, 0.06), 3: (0.325, 0.005), 4: (0.23, 0.004)}[len(looks)]
    objects: list[SceneObject] = []
    for column, look in enumerate(looks):
        size = draws.pick(SIZES)
        x = 0.5 + (column - (len(looks) - 1) / 2) * spacing + draws.offset(reach)
        before = objects[-1] if objects else None
        crowded = before is not None and x - before.x < RADIUS[size] + RADIUS[before.size]
        row = draws.pick([row for row in ROWS if not (crowded and before is not None and row == before.row)])
        y = 0.5 + (ROWS.index(row) - 1) * 0.31 + draws.offset(0.02)
        objects.append(SceneObject(look, size, row, x, y))
    return tuple(objects)


def _relation(objects: tuple[SceneObject, ...], draws: Draws) -> Relation:
    subject, anchor = draws.pick([(a, b) for a in range(len(objects)) for b in range(len(objects)) if a != b])
    kinds = ["left of" if subject < anchor else "right of"]
    rise = ROWS.index(objects[anchor].row) - ROWS.index(objects[subject].row)
    if rise:
        kinds.append("above" if rise > 0 else "below")
    return Relation(subject, draws.pick(kinds), anchor)


@lru_cache
def _cells(held_out: bool) -> np.ndarray:
    """(N, 3) background, first look, second look: all with a held-out look among the two, or all with none."""
    novel = np.array([look.held_out for look in LOOKS])
    chosen = (novel[:, None] | novel[None, :]) == held_out
    pairs = np.argwhere(chosen)
    return np.concatenate([np.insert(pairs, 0, number, axis=1) for number in range(len(BACKGROUNDS))])


@lru_cache(maxsize=8)
def _order(seed: int, held_out: bool) -> np.ndarray:
    keys = np.random.SeedSequence((seed, held_out)).generate_state(len(_cells(held_out)), np.uint64)
    return np.argsort(keys, kind="stable")
