"""Behaviour: annotation files are read as they are, names are data, and what is wrong is one line."""

import json
from collections import Counter
from pathlib import Path

import pytest

from mm.data import open_split
from mm.data.annotations import ImageFinder, read_annotations
from mm.data.coco import CocoFolder, write_coco
from mm.data.media import encode_image


def annotations(root: Path, split: str = "train") -> Path:
    return root / "annotations" / f"captions_{split}.json"


def write_karpathy(root: Path, images: list[tuple[str, str]]) -> Path:
    """dataset_coco.json with images (file name, split), one caption each, numbered from 0."""
    entries = []
    for number, (name, split) in enumerate(images):
        entry = {
            "cocoid": 100 + number,
            "filename": name,
            "filepath": name.split("_")[1],
            "split": split,
            "sentences": [{"raw": f"caption {number} ", "sentid": number}],
        }
        entries.append(entry)
    path = root / "dataset_coco.json"
    path.write_text(json.dumps({"images": entries}))
    return path


@pytest.fixture
def root(tmp_path, photographs):
    write_coco(photographs(2), tmp_path, "train", image_format="png")
    return tmp_path


def test_captions_are_those_of_the_file_in_its_order_with_null_as_an_empty_one(root, edit):
    edit(annotations(root), lambda content: content["annotations"][1].update(caption=None))
    edit(annotations(root), lambda content: content["annotations"].append({"id": 7, "image_id": 9, "caption": "lost"}))
    skipped = Counter()
    first, second = read_annotations(annotations(root), skipped)
    assert first.captions == [(0, "image 0, caption 0"), (1, "")] and first.file_name == "photo_000.png"
    assert second.image_id == 101 and [caption_id for caption_id, _ in second.captions] == [10, 11, 12]
    assert skipped == {"annotation of unknown images": 1}


def test_an_annotation_that_repeats_is_read_once_and_counted(root, edit):
    once = read_annotations(annotations(root), Counter())
    edit(annotations(root), lambda content: content["annotations"].extend(content["annotations"][:2]))
    skipped = Counter()
    assert read_annotations(annotations(root), skipped) == once
    assert skipped == {"repeated annotation": 2}


def test_images_of_the_annotations_year_come_first(tmp_path):
    for year in ("2014", "2017"):
        (tmp_path / f"val{year}").mkdir()
        (tmp_path / f"val{year}" / "1.jpg").touch()
    for year in ("2014", "2017"):
        found = ImageFinder(tmp_path, "val", tmp_path / f"captions_val{year}.json").find("1.jpg", 1)
        assert found == tmp_path / f"val{year}" / "1.jpg"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").touch()
    finder = ImageFinder(tmp_path, "val", tmp_path / "captions_val2014.json")
    assert finder.find("1.jpg", 1) == tmp_path / "images" / "1.jpg" and finder.find("2.jpg", 2) is None


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../b.png", "..\\b.png", ""])
def test_a_file_name_that_leaves_the_folder_is_refused(root, edit, name):
    edit(annotations(root), lambda content: content["images"][0].update(file_name=name))
    with pytest.raises(ValueError, match="leaves the data folder"):
        CocoFolder(root, "train")


def test_an_id_of_two_images_is_named(root, edit):
    edit(annotations(root), lambda content: content["images"].append({"id": 100, "file_name": "photo_001.png"}))
    with pytest.raises(ValueError, match=r"image id 100 stands for 'photo_000\.png' and for 'photo_001\.png'"):
        CocoFolder(root, "train")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"images": [{"id": 1}], "annotations": [{"id": 2}]}',
        '"text"',
        '{"images": [{"id": "x", "file_name": "a.jpg"}], "annotations": []}',
    ],
)
def test_a_broken_annotation_file_is_one_line(root, text):
    annotations(root).write_text(text)
    with pytest.raises(ValueError, match=r"captions_train\.json") as caught:
        CocoFolder(root, "train")
    assert "\n" not in str(caught.value)


def test_official_layout_and_karpathy_splits(tmp_path, photographs):
    """`val` finds captions_val2014.json and val2014/; Karpathy's restval lies in val2014 too, named by `filepath`."""
    samples = photographs(3)
    names = ["COCO_train2014_000000000100.jpg", "COCO_val2014_000000000101.jpg", "COCO_val2014_000000000102.jpg"]
    for sample, name in zip(samples, names, strict=True):
        folder = tmp_path / name.split("_")[1]
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(encode_image(sample.image, "jpg"))
    annotations(tmp_path, "val2014").parent.mkdir()
    images = [{"id": 101, "file_name": names[1]}]
    captions = [{"id": 1, "image_id": 101, "caption": "one"}]
    annotations(tmp_path, "val2014").write_text(json.dumps({"images": images, "annotations": captions}))
    assert open_split(tmp_path, "val").image_ids == [101]

    karpathy = write_karpathy(tmp_path, list(zip(names, ["train", "restval", "test"], strict=True)))
    both = open_split(tmp_path, "train+restval", karpathy=karpathy)
    assert both.image_ids == [100, 101] and both.captions == [("caption 0",), ("caption 1",)]
    assert open_split(tmp_path, "test", karpathy=karpathy).caption_ids == [(2,)]
    with pytest.raises(ValueError, match="'dev' is not a Karpathy split"):
        open_split(tmp_path, "dev", karpathy=karpathy)
    with pytest.raises(FileNotFoundError, match=r"other\.json does not exist"):
        open_split(tmp_path, "test", karpathy=tmp_path / "other.json")


def test_karpathys_2014_names_are_found_among_2017_files(tmp_path, photographs):
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017" / "000000000100.jpg").write_bytes(encode_image(photographs(1)[0].image, "jpg"))
    karpathy = write_karpathy(tmp_path, [("COCO_val2014_000000000100.jpg", "test")])
    assert open_split(tmp_path, "test", karpathy=karpathy).files == [tmp_path / "train2017" / "000000000100.jpg"]


def test_an_image_is_not_taken_from_another_folder_by_the_end_of_its_name(root, edit):
    """The file of that name in `images` is another image: the one that is named is missing, and counted."""
    edit(annotations(root), lambda content: content["images"][0].update(file_name="elsewhere/photo_000.png"))
    dataset = CocoFolder(root, "train")
    assert dataset.image_ids == [101] and dataset.skipped == {"missing image": 1}
    assert dataset.missing == ["elsewhere/photo_000.png"]


def test_an_image_is_not_taken_from_the_folder_of_another_split(root):
    (root / "train2017").mkdir()
    (root / "images" / "photo_000.png").rename(root / "train2017" / "photo_000.png")
    finder = ImageFinder(root, "val", annotations(root, "val"))
    assert finder.find("photo_000.png", 100) is None and finder.find("photo_001.png", 101)
    assert ImageFinder(root, "train", annotations(root)).find("photo_000.png", 100)
