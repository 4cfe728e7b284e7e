"""How a script starts: its options from the types of its arguments; what a user got wrong is one line, exit code 2."""

import logging
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli, set_parsing_settings


def run_command(
    component: Callable[..., Any],
    then: Callable[[Any], Any] | None = None,
    arguments: Sequence[str] | None = None,
    positional: bool = False,
) -> None:
    """Call the function `component`, or build the dataclass `component` and pass it to `then`, from the command line.

        run_command(eval_coco)
        run_command(AlignConfig, train_align)

    `arguments` stand in for the command line's; with `positional`, what has no default needs no --name. Errors that a
    user can cause (ValueError, OSError such as a missing file, FloatingPointError of a diverged run, an option nobody
    knows) end the process with code 2 and one line on stderr that starts with the script's name; any other exception is
    a bug and keeps its traceback.
    """
    script = Path(sys.argv[0])
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # what stands below a field is its --help
    try:
        found = auto_cli(
            component,
            args=None if arguments is None else list(arguments),
            as_positional=positional,
            allow_abbrev=False,
            exit_on_error=False,
        )
        if then is not None:
            then(found)
    except ArgumentError as error:
        _stop(f"{script.stem}: {_line(error)}; `python {script} --help` lists the options")
    except (ValueError, OSError, FloatingPointError) as error:
        _stop(f"{script.stem}: {_line(error)}")


def log_training() -> None:
    """What a training script logs: our lines as they are, of Lightning only what went wrong."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _stop(message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(2)
