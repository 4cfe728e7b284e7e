"""JSON is written whole or not at all, and names from data stay in their folder."""

import json
from pathlib import Path

import pytest

from mm.files import leaves_folder, write_json


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "..\\b", "C:b"])
def test_a_name_that_leads_out_of_its_folder_is_known(name: str) -> None:
    assert leaves_folder(name)


@pytest.mark.parametrize("name", ["a", "a/b.jpg", "a..b", ".hidden"])
def test_any_other_name_stays_in_it(name: str) -> None:
    assert not leaves_folder(name)
