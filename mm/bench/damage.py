"""What can happen to any file, and to JSON and YAML: bytes -> other bytes, by numbers that are drawn."""

import json
import pickle
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import yaml

Damage = Callable[[random.Random, bytes], bytes]
"""Numbers to draw, and a file's bytes -> its bytes afterwards."""
NESTED = 100_000
"""Lists in each other: more than any parser follows."""
DIGITS = 5000
"""Of a whole number: more than Python makes a number of."""
TWICE = "\0twice"
"""Stands for a key that an object has already."""
FOREIGN = (
    b"not what the name says\n",
    b"[]",
    b"null",
    b"{}",
    b"\x89PNG\r\n\x1a\n",
    b"PK\x05\x06" + bytes(18),
    b"\x1f\x8b\x08\x00" + bytes(16),
    b"\x93NUMPY\x01\x00",
    pickle.dumps({"a": 1}),
)
"""The beginnings of other kinds of file, or the whole of one."""
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    1.5,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "x",
    "",
    [],
    {},
    [[[]]],
    {"a": {"b": []}},
)
"""What may stand where something else belongs."""


def truncated(draw: random.Random, data: bytes) -> bytes:
    """Cut at a random place."""
    return data[: draw.randrange(len(data))]


def emptied(draw: random.Random, data: bytes) -> bytes:
    """No bytes."""
    return b""


def zeroed(draw: random.Random, data: bytes) -> bytes:
    """A span of zeros, as after a lost block."""
    start = draw.randrange(len(data))
    length = min(len(data) - start, draw.choice((16, 512, 4096)))
    return data[:start] + bytes(length) + data[start + length :]


def random_header(draw: random.Random, data: bytes) -> bytes:
    """Up to eight other bytes among the first 64."""
    return _replaced(draw, data, min(64, len(data)), draw.randint(1, 8))


def random_bytes(draw: random.Random, data: bytes) -> bytes:
    """Up to eight other bytes anywhere."""
    return _replaced(draw, data, len(data), draw.randint(1, 8))


def flipped_bit(draw: random.Random, data: bytes) -> bytes:
    """One bit."""
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def another_kind(draw: random.Random, data: bytes) -> bytes:
    """Another kind of file under the name."""
    return draw.choice(FOREIGN)


def garbage(draw: random.Random, data: bytes) -> bytes:
    """Random printable text."""
    return bytes(draw.choices(range(32, 127), k=draw.randint(1, 400)))


ANY: dict[str, Damage] = {
    "truncated": truncated,
    "empty": emptied,
    "zeroed span": zeroed,
    "random header": random_header,
    "random bytes": random_bytes,
    "flipped bit": flipped_bit,
    "another kind": another_kind,
    "garbage": garbage,
}
"""Of every file."""


def _replaced(draw: random.Random, data: bytes, within: int, count: int) -> bytes:
    changed = bytearray(data)
    for _ in range(count):
        changed[draw.randrange(within)] = draw.randrange(256)
    return bytes(changed)


def another_value(draw: random.Random, data: bytes) -> bytes:
    """A value of another type, or an impossible one."""
    content = parsed_text(data)
    parent, key = draw.choice(places(content))
    parent[key] = deepcopy(draw.choice(VALUES))
    return json.dumps(content).encode()


def missing_key(draw: random.Random, data: bytes) -> bytes:
    """An object without one of its keys."""
    content = parsed_text(data)
    held = [(parent, key) for parent, key in places(content) if isinstance(parent, dict)]
    parent, key = draw.choice(held)
    del parent[key]
    return json.dumps(content).encode()


def repeated_entry(draw: random.Random, data: bytes) -> bytes:
    """A list that holds an entry twice, with its id."""
    content = parsed_text(data)
    held = [(parent, key) for parent, key in places(content) if isinstance(parent, list)]
    if not held:
        return repeated_key(draw, data)
    parent, key = draw.choice(held)
    parent.append(deepcopy(parent[key]))
    return json.dumps(content).encode()


def repeated_key(draw: random.Random, data: bytes) -> bytes:
    """An object that has a key twice, with two values."""
    content = parsed_text(data)
    held = [(parent, key) for parent, key in places(content) if isinstance(parent, dict)]
    parent, key = draw.choice(held)
    parent[TWICE] = deepcopy(draw.choice(VALUES))
    return json.dumps(content).replace(json.dumps(TWICE), json.dumps(key)).encode()


def deep_nesting(draw: random.Random, data: bytes) -> bytes:
    """A value of lists in lists."""
    return _with_text(draw, data, "[" * NESTED + "]" * NESTED)


def long_number(draw: random.Random, data: bytes) -> bytes:
    """A whole number of thousands of digits."""
    return _with_text(draw, data, "7" * DIGITS)


def invalid_utf8(draw: random.Random, data: bytes) -> bytes:
    """Bytes that are no text."""
    place = draw.randrange(len(data))
    return data[:place] + draw.choice((b"\xff", b"\xc3\x28", b"\x00", b"\xed\xa0\x80")) + data[place:]


JSON: dict[str, Damage] = {
    **ANY,
    "another value": another_value,
    "missing key": missing_key,
    "repeated entry": repeated_entry,
    "repeated key": repeated_key,
    "deep nesting": deep_nesting,
    "long number": long_number,
    "invalid UTF-8": invalid_utf8,
}
"""Of JSON and YAML."""


def parsed_text(data: bytes) -> Any:
    """The plain values of JSON or YAML."""
    try:
        return json.loads(data)
    except ValueError:
        return yaml.safe_load(data)


def places(content: Any) -> list[tuple[Any, Any]]:
    """(list or object, position or key) of every value in nested values."""
    found = []
    items: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        items = list(content.items())
    if isinstance(content, list):
        items = list(enumerate(content))
    for key, value in items:
        found.append((content, key))
        found += places(value)
    return found


def _with_text(draw: random.Random, data: bytes, text: str) -> bytes:
    """JSON with a text in the place of one of its values."""
    content = parsed_text(data)
    parent, key = draw.choice(places(content))
    parent[key] = TWICE
    return json.dumps(content).replace(json.dumps(TWICE), text).encode()
