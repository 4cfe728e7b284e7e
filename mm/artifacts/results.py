"""The result.json of a run or of an evaluation, read from disk."""

from pathlib import Path
from typing import Any

from kernels.errors import MissingError, UserError
from kernels.parsing import parse_json
from mm.artifacts.upgrade import upgrade_result


def read_result(path: Path) -> dict[str, Any]:
    """The content, in today's words and shapes.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: naming a file that is something else.
    """
    if not path.is_file():
        raise MissingError(f"{path}: no such file; a finished run holds its result.json and embeddings.npz")
    try:
        return upgrade_result(parse_json(path.read_bytes(), "it"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a run's result: {type(error).__name__} {error}") from error
