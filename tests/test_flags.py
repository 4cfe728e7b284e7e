"""The options of every script and every command, frozen: a change of this list is a change of what users type, made on
purpose.

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

from mm.commands import COMMANDS, named

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("flags.txt")
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def asked_by(script: Path, patch: pytest.MonkeyPatch) -> tuple[Any, bool]:
    """What a script makes its options of, and whether some of them are positional."""
    asked: list[tuple[Any, bool]] = []

    def run_command(component: Any, *_: Any, **options: Any) -> None:
        asked.append((component, options.get("positional", False)))

    patch.setattr("mm.cli.run_command", run_command)
    patch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    (found,) = asked
    return found


def options(component: Any, positional: bool) -> Iterator[str]:
    """What a command line takes, positional words in capitals."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser: _ActionsContainer = auto_parser(component, as_positional=positional)
    for action in parser._actions:
        if not action.option_strings:
            yield action.dest.upper()
        yield from (name for name in action.option_strings if name.startswith("--"))


def listed() -> list[str]:
    asked = {}
    with pytest.MonkeyPatch.context() as patch:
        for script in SCRIPTS:
            asked[script.stem] = asked_by(script, patch)
    of_scripts = [component for component, _ in asked.values()]
    for name, command in COMMANDS.items():
        component = named(command.takes)
        if component not in of_scripts:  # else its options are that script's
            asked[f"mm-align {name}"] = (component, command.positional)
    lines = []
    for program, (component, positional) in asked.items():
        lines.extend(f"{program} {name}" for name in sorted(set(options(component, positional))))
    return lines


def test_the_options_are_those_that_are_listed() -> None:
    assert listed() == LIST.read_text().splitlines()


if __name__ == "__main__":
    LIST.write_text("\n".join(listed()) + "\n")
