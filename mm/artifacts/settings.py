"""Settings that come from files: every name is looked up in the settings' own types before a parser sees them.

jsonargparse imports what `class_path`, or a string in the place of a group of settings, names before it refuses it, and
opens a file that is named there. A run, a config or an adapter of somebody else would execute code.
"""

from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from kernels.errors import UserError
from kernels.ranges import kinds_in

Settings = TypeVar("Settings")
PLAIN = (bool, int, float, str, Path, type(None), list, tuple, dict)
"""Kinds of values that a file may hold."""
CLASS = "class_path"
"""The key under which jsonargparse imports a class."""


class UniqueKeyLoader(yaml.SafeLoader):
    """Builds plain values only, and refuses a key that stands twice: the parser would take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def read_text(path: Path) -> str:
    """The text of a file. Raises UserError where it is none."""
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text: {error}") from error


def read_yaml(text: str, source: str) -> Any:
    """The plain values of a YAML text; `source` names it in an error. Raises UserError where it is none."""
    try:
        return yaml.load(text, UniqueKeyLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a date, or of a number of thousands of digits
        raise UserError(f"{source} is no YAML of plain values: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise UserError(f"{source} is no YAML of plain values: they are nested too deeply") from None


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def parts_of(settings: type | Callable[..., Any]) -> dict[str, Any]:
    """The types of a dataclass's fields, or of a function's parameters, by name."""
    hints = get_type_hints(settings)
    hints.pop("return", None)
    return hints


def group_in(hint: Any) -> type | None:
    """The dataclass of settings within a type such as `Augment | None`, if there is one."""
    return next((kind for kind in kinds_in(hint) if is_dataclass(kind)), None)


def by_group(values: Mapping[str, Any], settings: type | Callable[..., Any], source: str, prefix: str = "") -> dict:
    """Check names, and nest those that are dotted.

    Args:
        values: nested or dotted, as a file has them.
        settings: a dataclass or function that takes them.
        source: names the file in an error.
        prefix: what the values' names follow, such as `data.`.

    Returns:
        the same values, nested.

    Raises:
        UserError: a name that is no setting, a class, or something else in the place of a group of settings.
    """
    parts = parts_of(settings)
    found: dict[str, Any] = {}
    for written, value in values.items():
        name, _, rest = str(written).partition(".")
        called = f"{prefix}{written}"
        if name not in parts:
            raise UserError(f"{source}: {called} is no setting")
        group = group_in(parts[name])
        if group is None:
            _check_plain(value, parts[name], source, called)
            found[str(written)] = value
            continue
        inner = {rest: value} if rest else value
        if inner is None:
            _check_plain(None, parts[name], source, called)
            found[name] = None
            continue
        if not isinstance(inner, Mapping):
            raise UserError(f"{source}: {called}={value!r}: a group of settings must stand here, not a name")
        nested = by_group(inner, group, source, f"{prefix}{name}.")
        found[name] = merged(found.get(name) or {}, nested, group)
    return found


def merged(base: Mapping[str, Any], changes: Mapping[str, Any], settings: type | Callable[..., Any]) -> dict[str, Any]:
    """Nested values with others on top of them; groups of settings are joined, everything else is replaced.

    Args:
        base: nested, as `by_group` gives them.
        changes: the same.
        settings: a dataclass or function that takes them.
    """
    parts = parts_of(settings)
    found = dict(base)
    for name, value in changes.items():
        group = group_in(parts[name]) if name in parts else None
        before = found.get(name)
        if group is not None and isinstance(before, Mapping) and isinstance(value, Mapping):
            found[name] = merged(before, value, group)
        else:
            found[name] = value
    return found


def nested_names(values: Mapping[str, Any]) -> Iterator[str]:
    """The dotted names of nested values."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in nested_names(value))
        else:
            yield name


def _check_plain(value: Any, hint: Any, source: str, called: str) -> None:
    """Raises UserError where a value would name a class, or is none where there must be one: jsonargparse takes null
    for every type."""
    kinds = kinds_in(hint)
    if value is None and not kinds & {Any, type(None)}:
        raise UserError(f"{source}: {called} is null: give it a value, or leave it out")
    if value is None:
        return
    if any(kind is not Any and not issubclass(kind, PLAIN) for kind in kinds):
        raise UserError(f"{source}: {called} names a class, which a file may not: give --{called} on the command line")
    _check_without_class(value, source, called)


def _check_without_class(value: Any, source: str, called: str) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name == CLASS:
                raise UserError(f"{source}: {called}.{CLASS} names a class, which a file may not")
            _check_without_class(inner, source, f"{called}.{name}")
    if isinstance(value, list | tuple):
        for inner in value:
            _check_without_class(inner, source, called)


@cache
def _parser(kind: type[Any]) -> ArgumentParser:
    """Of settings under the name `settings`. Taking a large dataclass apart lasts a second."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "settings")
    return parser


def settings_from_dict(kind: type[Settings], values: Any, source: str) -> Settings:
    """asdict(settings) -> settings, with every name and type checked as on the command line.

    Args:
        kind: the dataclass.
        values: of a file.
        source: names the file in an error.

    Raises:
        UserError: a setting that this code does not know, or whose value it does not take.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: settings must be a mapping, not {values!r}")
    nested = by_group(values, kind, source)
    parser = _parser(kind)  # type: ignore[arg-type]  # mypy takes __hash__ of a type variable for that of its instances
    try:
        return parser.instantiate(parser.parse_object({"settings": nested})).settings
    except (ArgumentError, UserError) as error:
        raise UserError(f"{source}: {' '.join(str(error).split())}") from error
