"""JSON that somebody else wrote: whatever cannot be read of it is the user's error, in one line."""

import json
from typing import Any

from kernels.errors import UserError


def parse_json(text: str | bytes, source: str) -> Any:
    """The value that a JSON text holds.

    Args:
        text: as it was read.
        source: names it in an error.

    Raises:
        UserError: it is no JSON, or no text, an object has a key twice (Python's parser takes the last), a number has
            thousands of digits, or values are nested deeper than the parser follows.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:
        raise UserError(f"{source} is not JSON: {error}") from error
    except RecursionError:
        raise UserError(f"{source} is not JSON of any use: its values are nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"the key {twice!r} stands twice in an object")
    return found
