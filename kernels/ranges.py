"""Numbers of settings, each with its range beside its type: `ema: Annotated[float, "[0, 1)"] = 0.0`.

It stands in the lowest layer, so that the settings of every package may be checked by it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from kernels.errors import UserError


@dataclass(frozen=True)
class Range:
    """An interval as mathematics writes it: `[` and `]` include an end, `(` and `)` exclude it.

    Args:
        text: such as `[0, 1)` or `(0, inf)`.
        whole: whether only integers are in it.
    """

    text: str
    whole: bool

    def holds(self, value: float) -> bool:
        """Whether a number is in it; NaN never is."""
        if self.whole and not isinstance(value, int):
            return False
        low, high = (float(end) for end in self.text[1:-1].split(","))
        above = value > low if self.text[0] == "(" else value >= low
        below = value < high if self.text[-1] == ")" else value <= high
        return math.isfinite(value) and above and below


def check_ranges(settings: Any, prefix: str = "") -> None:
    """Check every number of a dataclass of settings.

    Args:
        settings: the dataclass, whose fields state their ranges.
        prefix: what its fields are called under on the command line, such as `train`.

    Raises:
        UserError: a number lies outside of its range; the message names it.
    """
    kind: Any = type(settings)
    check_values(vars(settings), ranges_of(kind), prefix)


def check_values(values: Mapping[str, Any], ranges: Mapping[str, Range], prefix: str = "") -> None:
    """Check values by name, of a collection every number in it.

    Raises:
        UserError: a number lies outside of its range; the message names it.
    """
    for name, allowed in ranges.items():
        for value in numbers_in(values.get(name)):
            if not allowed.holds(value):
                called = f"{prefix}.{name}" if prefix else name
                kind = "a whole number in" if allowed.whole else "in"
                raise UserError(f"{called}={value}: it must be {kind} {allowed.text}")


@cache
def ranges_of(settings: Callable[..., Any]) -> dict[str, Range]:
    """The ranges that the fields of a dataclass, or the parameters of a function, state by name."""
    found = {}
    for name, hint in get_type_hints(settings, include_extras=True).items():
        stated = [text for part in annotated_in(hint) for text in part.__metadata__ if isinstance(text, str)]
        if stated:
            found[name] = Range(stated[0], whole=float not in kinds_in(hint))
    return found


def annotated_in(hint: Any) -> Iterator[Any]:
    """The `Annotated` types within a type."""
    if get_origin(hint) is Annotated:
        yield hint
    for part in get_args(hint):
        yield from annotated_in(part)


def kinds_in(hint: Any) -> set[type]:
    """The plain types within a type: int and None of `int | None`, str and float of `dict[str, float]`."""
    parts = get_args(hint)
    if not parts:
        return {hint} if isinstance(hint, type) else set()
    return set().union(*map(kinds_in, parts))


def numbers_in(value: Any) -> Iterator[float]:
    """The numbers of a value: itself, or those in a collection; a bool is none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Mapping):
        yield from numbers_in(list(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from numbers_in(each)
