"""Which parameters train: name patterns that freeze, and those that must fit something."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import Tensor

from kernels.errors import UserError
from mm.train.task import AlignTask, named_parameters


def fitting(task: AlignTask, pattern: str, option: str) -> list[Tensor]:
    """The parameters whose names a pattern fits.

    Args:
        task: has the parameters.
        pattern: as `fnmatch` reads it.
        option: the setting that the pattern comes from, named in the message.

    Raises:
        ValueError: the pattern fits no parameter.
    """
    named = named_parameters(task)
    found = [parameter for name, parameter in named if fnmatchcase(name, pattern)]
    if not found:
        parts = set()
        for name, _ in named:
            top = name.split(".")[:2]
            parts.add(".".join(top) + "*")
        raise UserError(f"{option}: no parameter is called {pattern!r}; there are {', '.join(sorted(parts))}")
    return found


def require_fitting(task: AlignTask, patterns: Iterable[str], option: str) -> None:
    """Raises ValueError, naming the option, where a pattern fits no parameter."""
    for pattern in patterns:
        fitting(task, pattern, option)


def freeze(task: AlignTask, patterns: Iterable[str]) -> None:
    """Freeze the parameters whose names fit any of the patterns.

    Args:
        task: has the parameters.
        patterns: as `fnmatch` reads them.

    Raises:
        ValueError: a pattern fits no parameter, or nothing is left to train.
    """
    patterns = list(patterns)
    for pattern in patterns:
        for parameter in fitting(task, pattern, "freeze"):
            parameter.requires_grad_(False)
    if patterns and not task.named_trainable():
        raise UserError(f"freeze={patterns} leaves nothing to train")
