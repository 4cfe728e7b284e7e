"""How a script starts: its options from the types of its arguments; what a user got wrong is one line, exit code 2."""

import difflib
import inspect
import json
import logging
import re
import shlex
import signal
import sys
import warnings
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from functools import wraps
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import DefaultHelpFormatter, auto_cli, set_parsing_settings

from kernels.errors import UserError
from kernels.ranges import check_values, ranges_of
from mm.artifacts.interrupted import Interrupted, sigterm_raises
from mm.artifacts.settings import CLASS, by_group, group_in, nested_names, parts_of, read_text, read_yaml
from mm.artifacts.upgrade import renamed_flag, upgrade_config
from mm.effects import Needs, require_effects
from mm.files import is_of_the_disk

CONFIGS = Path(__file__).parents[1] / "configs"
"""Presets: beside the package in a checkout, and where a wheel puts them."""

FROM_A_WORKER = re.compile(r"Caught \w+ in .*Original Traceback .*\n[\w.]*Error: (?P<said>.*)", re.DOTALL)


@dataclass(frozen=True)
class Program:
    """What a command line belongs to.

    Args:
        name: that its errors begin with.
        call: that a user types in front of its options.
        description: that its --help begins with.
    """

    name: str
    call: str
    description: str | None

    @classmethod
    def of_script(cls) -> "Program":
        """The script that this process runs."""
        script = Path(sys.argv[0])
        return cls(script.stem, f"python {shlex.quote(str(script))}", sys.modules["__main__"].__doc__)


def run_command(
    component: Callable[..., Any],
    then: Callable[[Any], Any] | None = None,
    arguments: Sequence[str] | None = None,
    positional: bool = False,
    log: bool = False,
    listed: str | None = None,
    program: Program | None = None,
    needs: Sequence[Needs] = (),
) -> None:
    """Call the function `component`, or build the dataclass `component` and pass it to `then`, from the command line.

        run_command(eval_coco)
        run_command(AlignConfig, train_align)

    `arguments` stand in for the command line's; with `positional`, what has no default needs no --name; the words in
    front of any option are the list `listed`; `log` shows what training logs; `program` is what runs, by default the
    script; `needs` says which options have an effect only beside others. `--config NAME` finds configs/NAME.yaml
    wherever the package lies. A UserError, what the disk refuses (a path that is not there or not allowed, no space)
    and an option nobody knows end the process with code 2 and one line on stderr that starts with the program's name;
    SIGTERM with 143 and Ctrl-C with 130 and one line, of training with the command that goes on; any other exception is
    a bug and keeps its traceback.
    """
    if log:
        log_training()
    if program is None:
        program = Program.of_script()
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # what stands below a field is its --help
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = with_listed(given, listed) if listed else given
    try:
        with sigterm_raises():
            found = parsed(component, words, positional, needs, program)
            if then is not None:
                then(found)
    except ArgumentError as error:
        _stop(f"{program.name}: {_renamed(words) or _line(error)}; `{program.call} --help` lists the options")
    except UserError as error:
        _stop(f"{program.name}: {_line(error)}")
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        _stop(f"{program.name}: {_line(error)}")
    except Interrupted as end:
        _stop(f"{program.name}: {_ended(end, program, given)}", 128 + end.number)
    except KeyboardInterrupt:
        _stop(f"{program.name}: {_ended(Interrupted(signal.SIGINT), program, given)}", 128 + signal.SIGINT)


def parsed(
    component: Callable[..., Any], given: list[str], positional: bool, needs: Sequence[Needs], program: Program
) -> Any:
    """The settings that words ask for, or what a function returned that was called by them.

    Raises ArgumentError on a word that nobody knows, UserError on an option without effect.
    """
    words = with_settings(given, component)
    found = auto_cli(
        within_ranges(component),
        args=words,
        as_positional=positional,
        allow_abbrev=False,
        exit_on_error=False,
        usage=f"{program.call} [--config FILE] [--OPTION VALUE …]",
        description=program.description,
        formatter_class=HelpFormatter,
    )
    if needs:
        require_effects(found, typed_options(words, component), needs)
    return found


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """--help begins with the script's own words, its commands a line each."""


def log_training() -> None:
    """What a training script logs: our lines as they are, of Lightning no warnings, of a hub not every request."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for requests in ("httpx", "httpx2"):
        logging.getLogger(requests).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")


def within_ranges(component: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose numbers are checked when it is called; settings check their own."""
    if isinstance(component, type):
        return component

    @wraps(component)
    def called(**arguments: Any) -> Any:
        check_values(arguments, ranges_of(component))
        return component(**arguments)

    return called


def with_listed(words: list[str], option: str) -> list[str]:
    """`a b --json c` -> `--runs=["a", "b"] --json c`: a list is one option, and nobody wants to type it as such."""
    front = list(takewhile(lambda word: not word.startswith("-"), words))
    return [f"--{option}={json.dumps(front)}", *words[len(front) :]] if front else words


def with_presets(words: list[str]) -> list[str]:
    """A command line whose `--config NAME` is the path of that preset.

    Raises:
        ValueError: a bare name is neither a file nor a preset.
    """
    found = list(words)
    for position, word in enumerate(words):
        if word.startswith("--config="):
            found[position] = f"--config={preset(word.partition('=')[2])}"
        elif word == "--config" and position + 1 < len(words):
            found[position + 1] = preset(words[position + 1])
    return found


def preset(name: str) -> str:
    """The path of a preset by its name; whatever is a path or YAML itself stays as it is.

    Raises:
        ValueError: a bare name is neither a file nor a preset.
    """
    if not re.fullmatch(r"\w+", name) or Path(name).is_file():
        return name
    names = [path.stem for path in presets()]
    if name not in names:
        raise UserError(f"--config {name}: no such file or preset; {nearest_name(name, names)}")
    return str(CONFIGS / f"{name}.yaml")


def presets() -> list[Path]:
    """The files of all presets."""
    return sorted(CONFIGS.glob("*.yaml"))


def nearest_name(name: str, names: Sequence[str]) -> str:
    """Which of some names was probably meant, or all of them, in words."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"


def with_settings(words: list[str], component: Callable[..., Any]) -> list[str]:
    """A command line whose presets and files of settings are found, checked and put in.

    Raises:
        UserError: there is no such preset.
        ArgumentError: a file holds what is no setting of `component`.
    """
    if "config" not in inspect.signature(component).parameters:
        words = with_presets(words)
    try:
        return with_checked_files(words, component)
    except UserError as error:
        raise ArgumentError(None, str(error)) from error


def with_checked_files(words: list[str], component: Callable[..., Any]) -> list[str]:
    """A command line in which the content of a file of settings stands in the file's place, its names checked.

    Raises UserError where a file names a class, or holds what is no setting of `component`.
    """
    parts = parts_of(component)
    checked: list[str] = []
    remaining = iter(words)
    for word in remaining:
        option, equals, value = word.partition("=")
        settings = _group_of(option, component)
        if settings is None or (option == "--config" and "config" in parts):
            checked.append(word)
            continue
        if not equals:
            value = next(remaining, "")
            if not value:
                checked.append(word)
                continue
        checked.append(f"{option}={_checked_settings(option, value, settings)}")
    return checked


def typed_options(words: Sequence[str], component: Callable[..., Any]) -> list[str]:
    """Names of the options on a command line of `with_checked_files`, those in a group's text one by one."""
    names = []
    for word in words:
        option, _, value = word.partition("=")
        name = option.removeprefix("--")
        if not option.startswith("--") or name == "config":
            continue
        content = read_yaml(value, option) if _group_of(option, component) else None
        inner = nested_names(content) if isinstance(content, dict) else []
        names += [f"{name}.{each}" for each in inner] or [name]
    return names


def _group_of(option: str, component: Callable[..., Any]) -> Callable[..., Any] | None:
    """What takes the settings in the file that an option names: all of them, or one group; None of any other option."""
    if option == "--config":
        return component
    settings: Callable[..., Any] | None = component
    for name in option.removeprefix("--").split("."):
        if settings is None or not option.startswith("--"):
            return None
        if name == CLASS and settings is not component:
            raise UserError(f"{option} is no option: a group of settings has no classes to choose from")
        hint = parts_of(settings).get(name)
        settings = group_in(hint)
    return settings


def _checked_settings(option: str, value: str, settings: Callable[..., Any]) -> str:
    """A file's path or a YAML text -> the same settings as a YAML text; a path that leads nowhere stays itself."""
    source = option
    text = value
    if _is_file(value):
        source = value
        text = read_text(Path(value))
    content = read_yaml(text, source)
    if not isinstance(content, dict):
        if content is None or option == "--config":
            return value
        raise UserError(f"{option}={value}: there is no such file of settings")
    if is_dataclass(settings) and option == "--config":
        content = upgrade_config(content, source)
    return yaml.safe_dump(by_group(content, settings, source), sort_keys=False)


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except OSError:  # a text that is too long for a name
        return False


def _renamed(words: Sequence[str]) -> str | None:
    """What to say of the first option that has another name by now."""
    for word in words:
        if word.startswith("--"):
            said = renamed_flag(re.split("[= ]", word)[0])
            if said is not None:
                return said
    return None


def _line(error: Exception) -> str:
    """A message on one line; of an error in a worker process, without the traceback that torch puts around it."""
    said = str(error)
    wrapped = FROM_A_WORKER.fullmatch(said)
    if wrapped:
        said = wrapped["said"]
    return " ".join(said.split()) or type(error).__name__


def _ended(end: Interrupted, program: Program, words: Sequence[str]) -> str:
    """What ended the process, where, and the command that goes on from there."""
    said = " ".join([f"stopped by {signal.Signals(end.number).name}", end.where]).strip()
    if not end.resumable:
        return said
    command = list(words)
    if "--resume" not in words:
        command += ["--resume", "true"]
    return f"{said}; to go on: {program.call} {shlex.join(command)}"


def _stop(message: str, code: int = 2) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
