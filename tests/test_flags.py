"""The options of every script, frozen: a change of this list is a change of what users type, made on purpose.

`python -P tests/test_flags.py` writes the list anew.
"""

import runpy
import sys
from argparse import _ActionsContainer
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import auto_parser, set_parsing_settings

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("flags.txt")
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def options(script: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """What a script takes on its command line, positional words in capitals."""
    asked: list[tuple[Any, dict[str, Any]]] = []

    def run_command(component: Any, *_: Any, **options: Any) -> None:
        asked.append((component, options))

    patch.setattr("mm.cli.run_command", run_command)
    patch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    ((component, given),) = asked
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser: _ActionsContainer = auto_parser(component, as_positional=given.get("positional", False))
    for action in parser._actions:
        if not action.option_strings:
            yield action.dest.upper()
        yield from (name for name in action.option_strings if name.startswith("--"))


def listed() -> list[str]:
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        for script in SCRIPTS:
            lines.extend(f"{script.stem} {name}" for name in sorted(set(options(script, patch))))
    return lines


def test_the_options_are_those_that_are_listed() -> None:
    assert listed() == LIST.read_text().splitlines()


if __name__ == "__main__":
    LIST.write_text("\n".join(listed()) + "\n")
