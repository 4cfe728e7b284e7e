"""JSON of others is read, or refused in a line that names it."""

import pytest

from kernels.errors import UserError
from kernels.parsing import parse_json

REFUSED = {
    "{": "Expecting property name",
    b"\xff{}": "decode",
    "7" * 5000: "4300 digits",
    "[" * 100_000: "nested too deeply",
    '{"a": [{"id": 1, "id": 2}]}': "the key 'id' stands twice in an object",
}
"""Text, and a part of what is said of it."""


@pytest.mark.parametrize("text, said", REFUSED.items(), ids=REFUSED.values())
def test_what_cannot_be_read_is_one_line_with_its_name(text: str | bytes, said: str) -> None:
    with pytest.raises(UserError, match=rf"^a\.json is not JSON.*{said}") as refused:
        parse_json(text, "a.json")
    assert "\n" not in str(refused.value)


def test_what_is_json_is_read_as_python_reads_it() -> None:
    assert parse_json(b'{"a": [1, 2.5, null, {"b": "\xc3\xa9"}], "c": {}}', "a.json") == {
        "a": [1, 2.5, None, {"b": "\u00e9"}],
        "c": {},
    }
