"""Ids and captions as files of annotations say them: what is neither is refused, never made into one."""

from typing import Any

from kernels.errors import UserError

SMALLEST_ID = -(2**63)
LARGEST_ID = 2**63 - 1
"""Ids are int64 from here on."""


def whole_id(value: Any, kind: str) -> int:
    """An id as an int.

    Args:
        value: as JSON holds it; digits in quotes count as a number, and so does 7.0.
        kind: what has the id, named in the message, such as `image`.

    Raises:
        ValueError: it is no whole number, or does not fit int64.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, float):
        whole = value.is_integer()
    if isinstance(value, str):
        whole = value.removeprefix("-").isdecimal()
    if not whole:
        raise UserError(f"{kind} id {value!r} is not a whole number: number the {kind}s")
    found = int(value)
    if not SMALLEST_ID <= found <= LARGEST_ID:
        raise UserError(f"{kind} id {found} does not fit 64 bits: number the {kind}s from 1")
    return found


def caption_text(value: Any, caption_id: int) -> str:
    """A caption as a string; null is an empty one, not the word "None".

    Args:
        value: as JSON holds it.
        caption_id: named in the message.

    Raises:
        ValueError: it is no string.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"caption {caption_id} is {repr(value)[:40]}, not a string: give each caption an id of its own")
    return value
