"""Zero-shot is claimed only of data that a run cannot have been trained on."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mm.batch import Sample
from mm.data import collection, open_split
from mm.data.coco import write_coco
from mm.data.collection import Collection, items_of, seen_images
from mm.data.config import DataConfig
from mm.data.scenes import write_scenes
from mm.data.scenes.folder import sample_at
from mm.data.shard_writer import write_shards


def scenes(folder: Path, seed: int = 0) -> DataConfig:
    """A set of its own for each seed, in COCO layout."""
    for split, size in (("train", 12), ("val", 6), ("test", 4)):
        write_coco((sample_at(seed, split, i, 32) for i in range(size)), folder, split)
    return DataConfig(root=str(folder))


def same(read: DataConfig, trained: DataConfig, split: str = "val") -> bool:
    """By what lies on disk, nothing having been noted."""
    return Collection.of(trained).has(open_split(read.folder, split), split, read.folder)


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


@pytest.fixture
def noted(trained: DataConfig) -> Collection:
    """The set as a run notes it, after which its folder is gone."""
    found = Collection.of(trained, [open_split(trained.folder, split) for split in ("train", "val")])
    shutil.rmtree(trained.folder)
    return found


def changed(sample: Sample, i: int, what: str) -> Sample:
    """A scene of which one thing is kept."""
    changes: dict[str, dict[str, Any]] = {
        "other captions": {"captions": (f"another caption {i}",), "caption_ids": (i,)},
        "other ids": {"image_id": 5000 + i},
        "one of its captions": {"captions": sample.captions[2:3], "caption_ids": (i,), "image": sample.image},
        "other images": {"image": sample_at(7, "train", i, 32).image},
    }
    return replace(sample, **changes[what])


@pytest.mark.parametrize("write", [write_coco, write_shards])
@pytest.mark.parametrize("what", ["other captions", "other ids", "one of its captions", "other images"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_noted_set_is_known_by_its_images_or_by_its_captions(
    noted: Collection, tmp_path: Path, write: Any, what: str, split: str
) -> None:
    """Elsewhere, under another name and as the other layout: images alone or captions alone are enough."""
    samples = [changed(sample_at(0, split, i, 32), i, what) for i in range(5)]
    write(samples, tmp_path / "elsewhere", "some")
    assert noted.has(open_split(tmp_path / "elsewhere", "some"), "some", tmp_path / "elsewhere")


def test_a_noted_set_is_not_another_one_of_its_name_and_ids(noted: Collection, tmp_path: Path) -> None:
    others = [replace(sample_at(3, "train", i, 32), image_id=i) for i in range(8)]
    write_coco(others, tmp_path / "there" / "set", "train")
    dataset = open_split(tmp_path / "there" / "set", "train")
    assert not noted.has(dataset, "train", tmp_path / "there" / "set")


def test_a_folder_and_its_shards_have_the_same_items_many_or_few(
    trained: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_split(trained.folder, "train")
    write_shards((folder.encoded(i) for i in range(12)), tmp_path / "shards", "train")  # type: ignore[attr-defined]
    shards = open_split(tmp_path / "shards", "train")
    assert len(items_of(folder)) == len(items_of(shards) | items_of(folder)) == 12 * 6
    monkeypatch.setattr(collection, "LIMIT", 5)
    assert items_of(folder) == items_of(shards) and len(items_of(folder)) == 2 * 5


def test_an_image_that_several_training_sets_hold_is_seen_once(trained: DataConfig) -> None:
    train, test = (open_split(trained.folder, split) for split in ("train", "test"))
    assert seen_images(train, []) == seen_images(train, [test]) == 0
    assert seen_images(train, [train]) == seen_images(train, [train, test, train]) == len(train)
