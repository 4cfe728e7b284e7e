"""Zero-shot is claimed only of data that a run cannot have been trained on."""

from dataclasses import replace
from pathlib import Path

import pytest

from mm.data import open_split
from mm.data.coco import write_coco
from mm.data.collection import same_collection
from mm.data.config import DataConfig
from mm.data.scenes import write_scenes
from mm.data.scenes.folder import sample_at


def scenes(folder: Path, seed: int = 0) -> DataConfig:
    """A set of its own for each seed, in COCO layout."""
    for split, size in (("train", 12), ("val", 6), ("test", 4)):
        write_coco((sample_at(seed, split, i, 32) for i in range(size)), folder, split)
    return DataConfig(root=str(folder))


def same(read: DataConfig, trained: DataConfig, split: str = "val") -> bool:
    return same_collection(open_split(read.folder, split), split, read, trained)


@pytest.fixture
def trained(tmp_path: Path) -> DataConfig:
    return scenes(tmp_path / "here" / "set")


def test_two_folders_of_one_name_are_two_sets(trained: DataConfig, tmp_path: Path) -> None:
    other = scenes(tmp_path / "there" / "set", seed=1)
    assert not same(other, trained) and not same(other, trained, "test")


def test_one_folder_is_one_set_whatever_leads_to_it(trained: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(trained.folder)
    for split in ("train", "val", "test"):
        assert same(trained, trained, split) and same(replace(trained, root=str(tmp_path / "link")), trained, split)


def test_a_copy_in_another_layout_is_the_same_set(trained: DataConfig, tmp_path: Path) -> None:
    shards = write_scenes(tmp_path / "shards", sizes={"train": 12, "val": 6, "test": 4}, image_size=32)
    assert same(DataConfig(root=str(shards)), trained)


def test_one_training_image_in_another_split_is_enough(trained: DataConfig, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    write_coco([sample_at(1, "val", 0, 32), sample_at(0, "train", 3, 32)], mixed, "some")
    assert same(DataConfig(root=str(mixed)), trained, "some")


def test_where_the_training_folder_is_gone_the_name_decides(trained: DataConfig, tmp_path: Path) -> None:
    gone = DataConfig(root=str(tmp_path / "gone" / "set"))
    assert same(trained, gone) and not same(trained, replace(gone, root=str(tmp_path / "gone" / "another")))


def test_the_embedded_scenes_are_those_of_the_cache(trained: DataConfig, tmp_path: Path) -> None:
    embedded = DataConfig(cache=str(tmp_path / "cache"))
    assert not same(trained, embedded)
    write_scenes(tmp_path / "cache" / "scenes", sizes={"train": 12, "val": 6}, image_size=32)
    assert same(trained, embedded)
