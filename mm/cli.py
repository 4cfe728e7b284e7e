"""How a script starts: its options from the types of its arguments; what a user got wrong is one line, exit code 2."""

import inspect
import logging
import re
import shlex
import signal
import sys
import warnings
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import DefaultHelpFormatter, auto_cli, set_parsing_settings

from mm.artifacts.interrupted import Interrupted, sigterm_raises
from mm.artifacts.upgrade import renamed_flag, upgrade_config


def run_command(
    component: Callable[..., Any],
    then: Callable[[Any], Any] | None = None,
    arguments: Sequence[str] | None = None,
    positional: bool = False,
    log: bool = False,
) -> None:
    """Call the function `component`, or build the dataclass `component` and pass it to `then`, from the command line.

        run_command(eval_coco)
        run_command(AlignConfig, train_align)

    `arguments` stand in for the command line's; with `positional`, what has no default needs no --name; `log` shows
    what training logs. Errors that a user can cause (ValueError, OSError such as a missing file, FloatingPointError of
    a diverged run, an option nobody knows) end the process with code 2 and one line on stderr that starts with the
    script's name; SIGTERM with 143 and Ctrl-C with 130 and one line, of training with the command that goes on; any
    other exception is a bug and keeps its traceback.
    """
    if log:
        log_training()
    script = Path(sys.argv[0])
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # what stands below a field is its --help
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = given
    try:
        if "config" not in inspect.signature(component).parameters:
            words = with_upgraded_config(words)
        with sigterm_raises():
            found = auto_cli(
                component,
                args=words,
                as_positional=positional,
                allow_abbrev=False,
                exit_on_error=False,
                usage=f"python {script} [--config FILE] [--OPTION VALUE …]",
                description=sys.modules["__main__"].__doc__,
                formatter_class=HelpFormatter,
            )
            if then is not None:
                then(found)
    except ArgumentError as error:
        _stop(f"{script.stem}: {_renamed(words) or _line(error)}; `python {script} --help` lists the options")
    except (ValueError, OSError, FloatingPointError) as error:
        _stop(f"{script.stem}: {_line(error)}")
    except Interrupted as end:
        _stop(f"{script.stem}: {_ended(end, script, given)}", 128 + end.number)
    except KeyboardInterrupt:
        _stop(f"{script.stem}: {_ended(Interrupted(signal.SIGINT), script, given)}", 128 + signal.SIGINT)


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """--help begins with the script's own words, its commands a line each."""


def log_training() -> None:
    """What a training script logs: our lines as they are, of Lightning no warnings."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", module="lightning")


def with_upgraded_config(words: list[str]) -> list[str]:
    """A command line whose --config files of an older version are read by their new names."""
    upgraded = list(words)
    for position, word in enumerate(words[:-1]):
        if word == "--config":
            path = Path(words[position + 1])
            content = _read_yaml(path)
            renamed = upgrade_config(content, str(path))
            if renamed != content:
                upgraded[position + 1] = yaml.safe_dump(renamed)
    return upgraded


def _read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a file; none where it holds none, which the parser says in its own words."""
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def _renamed(words: Sequence[str]) -> str | None:
    """What to say of the first option that has another name by now."""
    for word in words:
        if word.startswith("--"):
            said = renamed_flag(re.split("[= ]", word)[0])
            if said is not None:
                return said
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _ended(end: Interrupted, script: Path, words: Sequence[str]) -> str:
    """What ended the process, where, and the command that goes on from there."""
    said = " ".join([f"stopped by {signal.Signals(end.number).name}", end.where]).strip()
    if not end.resumable:
        return said
    command = ["python", str(script), *words]
    if "--resume" not in words:
        command += ["--resume", "true"]
    return f"{said}; to go on: {shlex.join(command)}"


def _stop(message: str, code: int = 2) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
