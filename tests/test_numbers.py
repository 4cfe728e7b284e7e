"""Every number that a user can set says its range, and refuses what lies outside of it.

`numbers.txt` lists which of a few doubtful values each takes: a change of it is made on purpose.
`python -P tests/test_numbers.py` writes it anew.
"""

import math
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from kernels.ranges import annotated_in, check_values, kinds_in, ranges_of
from mm.artifacts.settings import group_in, parts_of

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("numbers.txt")
DOUBTFUL = (-1, 0, 1.5, math.nan, math.inf)


def components() -> Iterator[Callable[..., Any]]:
    """What every script hands to the command line."""
    found: list[Callable[..., Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mm.cli.run_command", lambda component, *_, **__: found.append(component))
        for script in sorted((ROOT / "scripts").glob("*.py")):
            patch.setattr(sys, "argv", [str(script)])
            runpy.run_path(str(script), run_name="__main__")
    yield from found


def with_groups(settings: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """A dataclass or function, and the groups of settings in it."""
    yield settings
    for hint in parts_of(settings).values():
        group = group_in(hint)
        if group is not None:
            yield from with_groups(group)


def numbers() -> dict[tuple[Callable[..., Any], str], Any]:
    """The type of every number by what takes it and its name there."""
    found = {}
    for component in components():
        for settings in with_groups(component):
            for name, hint in parts_of(settings).items():
                if kinds_in(hint) & {int, float}:
                    found[settings, name] = hint
    return found


NUMBERS = numbers()


def in_place(hint: Any, value: float) -> Any:
    """A value as a number, or in the collection that is due."""
    kinds = str(hint)
    if "dict" in kinds:
        return {"*": value}
    if "tuple" in kinds or "list" in kinds:
        return (value, value)
    return value


def taken(settings: Callable[..., Any], name: str, value: float) -> bool:
    """Whether settings with this value are built; what is refused is named."""
    given = {name: in_place(NUMBERS[settings, name], value)}
    try:
        if is_dataclass(settings):
            for each in fields(settings):
                if each.default is MISSING and each.default_factory is MISSING:
                    given.setdefault(each.name, "")
            settings(**given)
        else:
            check_values(given, ranges_of(settings))
    except ValueError as error:
        assert f"{name}={value}" in str(error)
        return False
    return True


def listed() -> list[str]:
    lines = []
    for settings, name in NUMBERS:
        doubtful = [str(value) for value in DOUBTFUL if taken(settings, name, value)]
        called = f"{settings.__name__}.{name}" if is_dataclass(settings) else f"{settings.__module__}.{name}"
        lines.append(f"{called}: {', '.join(doubtful) or '-'}".replace("__main__", settings.__name__))
    return sorted(set(lines))


def test_every_number_says_its_range() -> None:
    assert len(NUMBERS) > 80
    assert not [f"{settings.__name__}.{name}" for settings, name in NUMBERS if name not in ranges_of(settings)]


def test_doubtful_numbers_are_refused_or_meant() -> None:
    assert listed() == LIST.read_text().splitlines()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nothing_takes_what_is_not_finite(value: float) -> None:
    for settings, name in NUMBERS:
        assert not taken(settings, name, value)


def test_a_range_that_nobody_reads_is_a_mistake() -> None:
    """A range is a text in brackets: another one would be passed over."""
    for settings, name in NUMBERS:
        ranges = [text for part in annotated_in(ranges_hint(settings, name)) for text in part.__metadata__]
        assert len(ranges) == 1 and ranges[0][0] in "([" and ranges[0][-1] in ")]" and "," in ranges[0]


def ranges_hint(settings: Callable[..., Any], name: str) -> Any:
    from typing import get_type_hints

    return get_type_hints(settings, include_extras=True)[name]


if __name__ == "__main__":
    LIST.write_text("\n".join(listed()) + "\n")
