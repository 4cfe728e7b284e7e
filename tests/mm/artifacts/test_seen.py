"""What a run was trained on, its bases' sets too, is written and found again."""

from pathlib import Path

import pytest

from mm.artifacts.seen import load_seen, save_seen, trained_on
from mm.data.collection import Collection
from mm.data.config import DataConfig


def test_sets_are_found_again_in_their_order(tmp_path: Path) -> None:
    sets = [
        Collection("own/train", "/data/own", "train", None, frozenset({"a", "b"})),
        Collection("molecules/train", "/data/molecules", "train", "splits.json"),
    ]
    save_seen(sets, tmp_path / "run")
    assert load_seen(tmp_path / "run", DataConfig(root="ignored")) == sets
    assert trained_on([*sets, sets[0]]) == "own/train, molecules/train"


def test_of_a_run_without_a_list_its_own_set_is_known(tmp_path: Path) -> None:
    (seen,) = load_seen(tmp_path, DataConfig(root=str(tmp_path / "own"), train="all"))
    assert (seen.name, seen.folder, seen.items) == ("own/all", str(tmp_path / "own"), frozenset())


@pytest.mark.parametrize("text", ["{", "[1]", '[{"name": "x"}]', "5", "[]", "{}", "\\xff"])
def test_another_file_is_one_line_with_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "seen.json").write_text(text)
    with pytest.raises(ValueError, match=r"seen\.json is not a run's list of sets"):
        load_seen(tmp_path, DataConfig())
