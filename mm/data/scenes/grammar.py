"""Five captions of a scene by five speakers, each with an order of its own and facts that it omits.

  inventory   left to right: size, texture, colour, shape; the background                            omits the rows
  rows        right to left: colour, shape, row                                    omits size, texture, background
  relation    how two objects lie, then the others: texture, colour, shape              omits size, background, row
  count       how many on which background, the large ones first: colour, shape, texture                 omits rows
  levels      top to bottom: size, colour, shape                                         omits texture, background

`inventory` and `rows` together say every fact. The choice among synonyms follows from the facts themselves.
"""

from collections.abc import Sequence
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
INVENTORY_ORDERS = (
    ("size", "texture", "colour"),
    ("size", "colour", "texture"),
    ("texture", "size", "colour"),
)
INVENTORY_OPENINGS = ("", "from left to right: ", "a picture of ", "there is ")
ROWS_OPENINGS = ("from right to left, ", "right to left: ", "starting on the right, ")
RELATION_ENDINGS = ("beside {}", "together with {}", "and also {}")
COUNT_OPENINGS = ("{} {} on {}: ", "we see {} {} on {}, ", "{} {} in front of {}, ")
FUNCTION_WORDS = ("a", "an", "and", "is", "on")


def _vocabulary() -> frozenset[str]:
    """Every word that a caption can hold."""
    phrases = [*NUMBERS.values(), *NOUNS, *GROUNDS, *FUNCTION_WORDS]
    phrases += [*INVENTORY_OPENINGS, *ROWS_OPENINGS, *RELATION_ENDINGS, *COUNT_OPENINGS]
    for synonyms in (WORDS, PATTERNS, PLACES, RELATIONS):
        for alternatives in synonyms.values():
            phrases += alternatives
    words: set[str] = set()
    for phrase in phrases:
        for mark in ("{}", ":", ","):
            phrase = phrase.replace(mark, " ")
        words.update(phrase.split())
    return frozenset(words)


VOCABULARY = _vocabulary()


def captions(scene: Scene) -> tuple[str, str, str, str, str]:
    """The five captions, lower case, all different; a function of the facts and of the stated relation."""
    said = repr((scene.facts, scene.relation))
    draws = Draws(crc32(said.encode()))
    return (
        _inventory(scene, draws),
        _rows(scene, draws),
        _relation(scene, draws),
        _count(scene, draws),
        _levels(scene, draws),
    )


def _inventory(scene: Scene, draws: Draws) -> str:
    order = draws.pick(INVENTORY_ORDERS)
    things = [_phrase(thing, draws, order) for thing in scene.objects]
    opening = draws.pick(INVENTORY_OPENINGS)
    ground = _ground(scene, draws)
    return f"{opening}{_listed(things)} on {ground}"


def _rows(scene: Scene, draws: Draws) -> str:
    things = []
    for thing in reversed(scene.objects):
        phrase = _phrase(thing, draws, ("colour",))
        place = draws.pick(PLACES[thing.row])
        things.append(f"{phrase} {place}")
    return draws.pick(ROWS_OPENINGS) + ", ".join(things)


def _relation(scene: Scene, draws: Draws) -> str:
    stated = scene.relation
    adjectives = ("texture", "colour")
    subject = _phrase(scene.objects[stated.subject], draws, adjectives)
    anchor = _phrase(scene.objects[stated.anchor], draws, adjectives)
    relation = draws.pick(RELATIONS[stated.kind])
    sentence = f"{subject} is {relation} {anchor}"
    rest = []
    for number, thing in enumerate(scene.objects):
        if number not in (stated.subject, stated.anchor):
            rest.append(_phrase(thing, draws, adjectives))
    if not rest:
        return sentence
    ending = draws.pick(RELATION_ENDINGS).format(_listed(rest))
    return f"{sentence} {ending}"


def _count(scene: Scene, draws: Draws) -> str:
    number = NUMBERS[len(scene.objects)]
    noun = draws.pick(NOUNS)
    opening = draws.pick(COUNT_OPENINGS)
    ground = _ground(scene, draws)
    things = []
    large_first = sorted(scene.objects, key=lambda thing: thing.size != "large")
    for thing in large_first:
        phrase = _phrase(thing, draws, ("colour",))
        pattern = draws.pick(PATTERNS[thing.look.texture])
        things.append(f"{phrase} {pattern}")
    return opening.format(number, noun, ground) + ", ".join(things)


def _levels(scene: Scene, draws: Draws) -> str:
    levels = []
    for row in ROWS:
        in_row = [thing for thing in scene.objects if thing.row == row]
        things = [_phrase(thing, draws, ("size", "colour")) for thing in in_row]
        if things:
            place = draws.pick(PLACES[row])
            levels.append(f"{place} {_listed(things)}")
    return ", ".join(levels)


def _phrase(thing: SceneObject, draws: Draws, attributes: tuple[str, ...]) -> str:
    """ "a small striped red circle", with only the adjectives asked for, in their order."""
    values = {"size": thing.size, **thing.look._asdict()}
    words = []
    for attribute in (*attributes, "shape"):
        synonyms = WORDS[values[attribute]]
        words.append(draws.pick(synonyms))
    return _with_article(" ".join(words))


def _ground(scene: Scene, draws: Draws) -> str:
    """ "a black backdrop"."""
    colour = draws.pick(WORDS[scene.background])
    ground = draws.pick(GROUNDS)
    return _with_article(f"{colour} {ground}")


def _with_article(phrase: str) -> str:
    article = "an" if phrase[0] in "aeiou" else "a"
    return f"{article} {phrase}"


def _listed(phrases: Sequence[str]) -> str:
    """ "x", "x and y", "x, y and z"."""
    *head, last = phrases
    if not head:
        return last
    return f"{', '.join(head)} and {last}"
