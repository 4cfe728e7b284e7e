"""One small class becomes a data set, and what is wrong with a row is one line that names it."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from encoders import ImageConfig
from mm.data import open_split
from mm.data.coco import write_coco
from mm.data.domains.base import DomainAdapter
from mm.data.shard_writer import write_shards
from mm.data.views import EvalView
from mm.modalities import build_readers


class Rows(DomainAdapter):
    def __init__(self, *rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def image(number: int = 0) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (8, 6), (number, 0, 0))


AUDIO = (np.zeros(160, np.float32), 16000)


def test_any_subset_of_the_fields_becomes_a_sample() -> None:
    dataset = Rows({"image": image(), "text": "one"}, {"audio": AUDIO, "text": ("two", "three")}).dataset()
    assert dataset.modalities == {"image", "audio", "text"} and dataset.has_audio == [False, True]
    assert dataset.captions == [("one",), ("two", "three")] and dataset.caption_ids == [(0,), (1, 2)]
    assert dataset[0].image is not None and dataset[0].audio is None
    assert dataset[1].image is None and dataset[1].sample_rate == 16000
    assert Rows({"image": image()}).dataset().modalities == {"image"}


def test_an_image_is_drawn_when_it_is_asked_for() -> None:
    drawn = []
    dataset = Rows({"image": lambda: drawn.append(1) or image(7), "text": "seven"}).dataset()
    assert dataset.captions == [("seven",)] and not drawn
    assert dataset[0].image[:, 0, 0].tolist() == [7, 0, 0] and drawn == [1]


@pytest.mark.parametrize("write", [write_coco, write_shards])
def test_collation_and_both_layouts_are_inherited(write: Any, tmp_path: Path) -> None:
    dataset = Rows(*({"image": image(i), "text": f"number {i}"} for i in range(3))).dataset()
    assert EvalView(dataset, build_readers({"image": ImageConfig(size=8)}))[1].rows["image"].shape == (3, 8, 8)
    write((dataset[i] for i in range(3)), tmp_path, "train", image_format="png")
    read = open_split(tmp_path, "train")
    assert read.captions == dataset.captions and read.image_ids == dataset.image_ids
    assert read[2].image[:, 0, 0].tolist() == [2, 0, 0]


def test_every_row_is_in_one_split_and_none_is_empty() -> None:
    for size in (2, 3, 50):
        parts = Rows(*[{"text": "x"}] * size).splits(0.2, seed=0)
        assert sorted(parts["train"] + parts["val"]) == list(range(size)) and parts["train"] and parts["val"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text", "row 1: __getitem__ gave str, not a dict"),
        ({"caption": "x"}, "row 1: unknown field 'caption'; a row holds any of image, audio, text"),
        ({"text": "  "}, "row 1: '  ' is no caption"),
        ({"text": ("x", None)}, "row 1: None is no caption"),
        ({}, "row 1 holds nothing"),
        ({"image": 3}, "row 1: image is int, not a path, a function or Image"),
        ({"image": Path("nowhere.png"), "text": "x"}, "row 1: image nowhere.png is not on disk"),
    ],
)
def test_a_wrong_row_is_one_line_that_names_it(row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^Rows/all, ") as error:
        Rows({"text": "fine"}, row).dataset()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": lambda: "no image"}, "row 0: the function of its image gave str"),
        ({"audio": lambda: 3}, "row 0: audio is a pair"),
        ({"audio": (np.full(4, np.nan), 16000)}, "row 0: the waveform must be one row"),
    ],
)
def test_what_shows_only_when_it_is_read_names_its_row_too(row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rows(row).dataset()[0]


def test_a_file_that_does_not_decode_is_absent_and_named_with_its_row(tmp_path: Path, caplog: Any) -> None:
    for name in ("broken.png", "broken.wav"):
        (tmp_path / name).write_bytes(b"no file")
    dataset = Rows({"image": tmp_path / "broken.png", "audio": tmp_path / "broken.wav", "text": "a"}).dataset()
    sample = dataset[0]
    assert sample.image is None and sample.audio is None and sample.captions == ("a",)
    assert dataset.skipped == {"unreadable image": 1, "unreadable audio": 1}
    assert "broken.png of Rows/all, row 0 does not decode" in caplog.text


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="Rows/all is empty"):
        Rows().dataset()
