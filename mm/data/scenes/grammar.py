"""Five captions of a scene by five speakers, each with an order of its own and facts that it leaves out.

  inventory   left to right: size, texture, colour, shape; the background                      leaves out the rows
  rows        right to left: colour, shape, row                                leaves out size, texture, background
  relation    how two objects lie, then the others: texture, colour, shape          leaves out size, background, row
  count       how many on which background, the large ones first: colour, shape, texture             leaves out rows
  levels      top to bottom: size, colour, shape                                     leaves out texture, background

`inventory` and `rows` together say every fact. The choice among synonyms follows from the facts themselves.
"""

from collections.abc import Iterable
from zlib import crc32

from mm.data.scenes.scene import COUNTS, ROWS, Draws, Scene, SceneObject

WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "heart": ("heart",),
    "ring": ("ring", "hoop"),
    "moon": ("moon", "crescent"),
    "red": ("red", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green",),
    "cyan": ("turquoise", "aqua"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "solid": ("solid", "plain"),
    "striped": ("striped", "banded"),
    "dotted": ("dotted", "spotted"),
    "checked": ("checked", "plaid"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "black": ("black", "dark"),
    "white": ("white", "bright"),
    "gray": ("gray", "grey"),
    "brown": ("brown", "wooden"),
}
"""Each attribute's synonyms; no word stands for two attributes."""
PATTERNS = {
    "solid": ("left plain", "filled in"),
    "striped": ("with stripes", "with bands"),
    "dotted": ("with dots", "with spots"),
    "checked": ("with checks", "with tiles"),
}
PLACES = {
    "top": ("at the top", "high up"),
    "middle": ("in the middle", "at mid height"),
    "bottom": ("at the bottom", "low down"),
}
RELATIONS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than"),
}
NUMBERS = dict(zip(COUNTS, ("two", "three", "four"), strict=True))
NOUNS = ("objects", "shapes", "things", "figures")
GROUNDS = ("background", "backdrop", "canvas", "wall")
INVENTORY_OPENINGS = ("", "from left to right: ", "a picture of ", "there is ")
ROWS_OPENINGS = ("from right to left, ", "right to left: ", "starting on the right, ")
RELATION_ENDINGS = ("beside {}", "together with {}", "and also {}")
COUNT_OPENINGS = ("{} {} on {}: ", "we see {} {} on {}, ", "{} {} in front of {}, ")

VOCABULARY = frozenset(
    word
    for phrases in (
        *WORDS.values(),
        *PATTERNS.values(),
        *PLACES.values(),
        *RELATIONS.values(),
        NUMBERS.values(),
        NOUNS,
        GROUNDS,
        INVENTORY_OPENINGS,
        ROWS_OPENINGS,
        RELATION_ENDINGS,
        COUNT_OPENINGS,
        ("a", "an", "and", "is", "on"),
    )
    for phrase in phrases
    for word in phrase.replace("{}", " ").replace(":", " ").replace(",", " ").split()
)


def captions(scene: Scene) -> tuple[str, str, str, str, str]:
    """The five captions, lower case, all different; a function of the facts and of the stated relation."""
    draws = Draws(crc32(repr((scene.facts, scene.relation)).encode()))
    return (
        _inventory(scene, draws),
        _rows(scene, draws),
        _relation(scene, draws),
        _count(scene, draws),
        _levels(scene, draws),
    )


def _inventory(scene: Scene, draws: Draws) -> str:
    order = draws.pick((("size", "texture", "colour"), ("size", "colour", "texture"), ("texture", "size", "colour")))
    things = _listed(_phrase(thing, draws, order) for thing in scene.objects)
    return f"{draws.pick(INVENTORY_OPENINGS)}{things} on {_ground(scene, draws)}"


def _rows(scene: Scene, draws: Draws) -> str:
    right_to_left = reversed(scene.objects)
    things = [f"{_phrase(thing, draws, ('colour',))} {draws.pick(PLACES[thing.row])}" for thing in right_to_left]
    return draws.pick(ROWS_OPENINGS) + ", ".join(things)


def _relation(scene: Scene, draws: Draws) -> str:
    stated = scene.relation
    subject, anchor = (_phrase(scene.objects[i], draws, ("texture", "colour")) for i in (stated.subject, stated.anchor))
    sentence = f"{subject} is {draws.pick(RELATIONS[stated.kind])} {anchor}"
    others = [thing for i, thing in enumerate(scene.objects) if i not in (stated.subject, stated.anchor)]
    if not others:
        return sentence
    rest = _listed(_phrase(thing, draws, ("texture", "colour")) for thing in others)
    return f"{sentence} {draws.pick(RELATION_ENDINGS).format(rest)}"


def _count(scene: Scene, draws: Draws) -> str:
    number, noun = NUMBERS[len(scene.objects)], draws.pick(NOUNS)
    opening = draws.pick(COUNT_OPENINGS).format(number, noun, _ground(scene, draws))
    large_first = sorted(scene.objects, key=lambda thing: thing.size != "large")
    return opening + ", ".join(
        f"{_phrase(thing, draws, ('colour',))} {draws.pick(PATTERNS[thing.look.texture])}" for thing in large_first
    )


def _levels(scene: Scene, draws: Draws) -> str:
    levels = []
    for row in ROWS:
        things = [_phrase(thing, draws, ("size", "colour")) for thing in scene.objects if thing.row == row]
        if things:
            levels.append(f"{draws.pick(PLACES[row])} {_listed(things)}")
    return ", ".join(levels)


def _phrase(thing: SceneObject, draws: Draws, attributes: tuple[str, ...]) -> str:
    """ "a small striped red circle", with only the adjectives asked for, in their order."""
    value = {"size": thing.size, **thing.look._asdict()}
    words = [draws.pick(WORDS[value[name]]) for name in (*attributes, "shape")]
    return _with_article(" ".join(words))


def _ground(scene: Scene, draws: Draws) -> str:
    return _with_article(f"{draws.pick(WORDS[scene.background])} {draws.pick(GROUNDS)}")


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _listed(phrases: Iterable[str]) -> str:
    """ "x", "x and y", "x, y and z"."""
    *head, last = phrases
    return f"{', '.join(head)} and {last}" if head else last
