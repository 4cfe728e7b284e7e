"""Listed files become a dataset that any model embeds, and each file keeps its own label and captions."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.intervals import Bootstrap
from eval.sugar_crepe import SUGAR_CREPE
from mm.data.dataset import CaptionDataset, StampedDataset
from mm.data.media import encode_audio
from mm.evaluation.models import EvaluatedSplit
from mm.evaluation.zero_shot import ListedFiles, evaluate_classes, evaluate_sugar_crepe

FEW = Bootstrap(10)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "dark blue": (0, 0, 255)}


class ColourModel:
    """Sees the mean colour of an image and reads the last colour of a caption: right whenever it is asked rightly."""

    trained_on = "zero-shot"

    def __init__(self, *modalities: str) -> None:
        self.modalities = modalities or ("image", "text")

    def open(self, split: str) -> CaptionDataset:
        raise NotImplementedError

    def embed(self, dataset: CaptionDataset, name: str) -> EvaluatedSplit:
        assert all(dataset.captions)  # a caption for everybody: frozen text trunks look each up
        captions = [c for group in dataset.captions for c in group]
        images = [dataset[i].image for i in range(len(dataset))]
        ids = [i for i, image in zip(dataset.image_ids, images, strict=True) if image is not None]
        seen = [image.float().mean((1, 2)).numpy() / 255 for image in images if image is not None]
        counts = [len(group) for group in dataset.captions]
        read = [np.array(next(v for k, v in COLOURS.items() if k in caption)) / 255 for caption in captions]
        return EvaluatedSplit(
            {
                "image": np.array(seen),
                "text": np.array(read),
                "image_ids": np.array(ids),
                "caption_image_ids": np.repeat(dataset.image_ids, counts),
            },
            {},
        )


def paint(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), COLOURS[colour]).save(path)


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """dark_blue/ with three files, green/ with one, red/ with two."""
    for name, count in {"dark_blue": 3, "green": 1, "red": 2}.items():
        for i in range(count):
            paint(tmp_path / "colours" / name / f"{i}.png", name.replace("_", " "))
    return tmp_path / "colours"


def test_classes_of_any_size_meet_their_own_prompts(colours: Path) -> None:
    found = evaluate_classes(ColourModel(), colours, ["a {} thing.", "it is {}."], FEW)["classes"]
    assert found.metrics["top-1 accuracy"] == 100
    assert (found.protocol.dataset, found.protocol.images, found.protocol.captions) == ("colours", 6, 6)
    paint(colours / "red" / "0.png", "green")
    mistaken = evaluate_classes(ColourModel(), colours, bootstrap=FEW)["classes"]
    assert mistaken.metrics["top-1 accuracy"] == pytest.approx(500 / 6)


def test_files_of_other_kinds_are_counted_by_their_extension(colours: Path) -> None:
    for name in ("a.webp", "b.bmp", "c.gif", "d.tif"):
        paint(colours / "red" / name, "red")
    (colours / "red" / "e.heic").write_bytes(b"x")
    (colours / "green" / "README").write_bytes(b"x")
    found = evaluate_classes(ColourModel(), colours, bootstrap=FEW)["classes"]
    assert found.protocol.images == 10 and found.metrics["top-1 accuracy"] == 100
    reasons = ("(README)", "(.heic)")
    assert found.protocol.skipped == {f"file of a kind that is not read {reason}": 1 for reason in reasons}


def test_a_class_s_file_that_does_not_decode_is_counted(colours: Path) -> None:
    (colours / "dark_blue" / "1.png").write_bytes(b"no image")
    found = evaluate_classes(ColourModel(), colours, bootstrap=FEW)["classes"]
    assert (found.protocol.images, found.metrics["top-1 accuracy"]) == (5, 100)
    assert found.protocol.skipped == {"unreadable image": 1}


def test_folders_that_are_no_classes_are_refused(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no encoder of image"):
        evaluate_classes(ColourModel("audio", "text"), colours)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate_classes(ColourModel(), tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no \{\}"):
        evaluate_classes(ColourModel(), colours, ["a thing"])
    (colours / "white").mkdir()
    with pytest.raises(ValueError, match="'white' holds no image"):
        evaluate_classes(ColourModel(), colours)
    (colours / "white" / "hiss.wav").write_bytes(encode_audio(np.zeros(99, np.float32), 8000, "wav"))
    with pytest.raises(ValueError, match="images and audio clips"):
        evaluate_classes(ColourModel(), colours)


def edits(folder: Path, name: str = "000000000001.jpg") -> Path:
    row = {"filename": name, "caption": "it is red", "negative_caption": "it is green"}
    for split in SUGAR_CREPE:
        (folder / f"{split}.json").write_text(json.dumps({"0": row}))
    return folder


@pytest.mark.parametrize("place", ["", "val2017", "images"])
def test_an_edit_is_told_from_the_truth_wherever_the_images_lie(tmp_path: Path, place: str) -> None:
    paint(tmp_path / "coco" / place / "000000000001.jpg", "red")
    found = evaluate_sugar_crepe(ColourModel(), edits(tmp_path), tmp_path / "coco", FEW)["cosine"]
    assert found.metrics["mean"] == 100 and found.protocol.skipped == {}


def test_what_is_missing_is_counted_in_the_protocol(tmp_path: Path) -> None:
    paint(tmp_path / "000000000001.jpg", "red")
    folder = edits(tmp_path)
    rows = json.loads((folder / "swap_obj.json").read_text())
    rows["1"] = rows["0"] | {"filename": "000000000002.jpg"}
    (folder / "swap_obj.json").write_text(json.dumps(rows))
    found = evaluate_sugar_crepe(ColourModel(), folder, tmp_path, FEW)["cosine"]
    assert found.protocol.skipped == {"image is missing": 1} and found.protocol.images == 1


def test_an_edit_whose_image_does_not_decode_is_counted_and_moves_no_other(tmp_path: Path) -> None:
    (tmp_path / "000000000001.jpg").write_bytes(b"no image")
    folder = edits(tmp_path)
    rows = json.loads((folder / "swap_obj.json").read_text())
    rows["1"] = rows["0"] | {"filename": "000000000002.jpg"}
    paint(tmp_path / "000000000002.jpg", "red")
    for split in SUGAR_CREPE:
        (folder / f"{split}.json").write_text(json.dumps(rows))
    found = evaluate_sugar_crepe(ColourModel(), folder, tmp_path, FEW)["cosine"]
    assert found.metrics["mean"] == 100 and found.protocol.images == 1
    assert found.protocol.skipped == {"image does not decode": len(SUGAR_CREPE)}


def test_a_file_name_is_not_a_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a path"):
        evaluate_sugar_crepe(ColourModel(), edits(tmp_path, "../secret.jpg"), tmp_path)


def test_listed_files_that_change_are_another_set(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    dataset = ListedFiles("set/listed", [path], [("a",)], "image")
    assert isinstance(dataset, StampedDataset)
    before = dataset.stamp("image")
    path.write_bytes(b"12")
    assert dataset.stamp("image") != before
