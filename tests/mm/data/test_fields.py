"""Behaviour: an id is a whole number of 64 bits, a caption a string; anything else is refused, never made into one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mm.data import open_split
from mm.data.coco import write_coco
from mm.data.fields import caption_text, whole_id
from mm.data.shard_index import index_path
from mm.data.shard_writer import write_shards

Change = Callable[[str, Any], None]


def test_what_says_a_whole_number_is_one() -> None:
    assert [whole_id(value, "image") for value in (7, "7", 7.0)] == [7, 7, 7]
    assert [whole_id(value, "image") for value in (-(2**63), 2**63 - 1)] == [-(2**63), 2**63 - 1]
    assert caption_text("a b ", 1) == "a b " and caption_text(None, 1) == ""


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 1.5, float("nan"), True, None, "x", [1], {}])
def test_what_is_no_id_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^image id .*: number the images"):
        whole_id(value, "image")


@pytest.fixture(params=["folder", "karpathy", "shards", "index"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, photographs: Any) -> tuple[str, Change, Callable[[], Any]]:
    """A set in one of the shapes that are read: its file, what gives a field of its first entry a value, opening."""
    if request.param in ("shards", "index"):
        return _shards(tmp_path, photographs(2), with_index=request.param == "index")
    write_coco(photographs(2), tmp_path, "train", image_format="png")
    if request.param == "folder":
        path = tmp_path / "annotations" / "captions_train.json"
        places = {"image": ("images", "id"), "caption": ("annotations", "id"), "text": ("annotations", "caption")}

        def change(field: str, value: Any) -> None:
            content = json.loads(path.read_text())
            part, name = places[field]
            content[part][0][name] = value
            path.write_text(json.dumps(content))

        return path.name, change, lambda: open_split(tmp_path, "train")
    path = tmp_path / "karpathy.json"

    def write(field: str, value: Any) -> None:
        sentence = {"sentid": 1, "raw": "one"}
        image = {"cocoid": 5, "filename": "photo_000.png", "split": "train", "sentences": [sentence]}
        place, name = {"image": (image, "cocoid"), "caption": (sentence, "sentid"), "text": (sentence, "raw")}[field]
        place[name] = value  # type: ignore[index]
        path.write_text(json.dumps({"images": [image]}))

    return path.name, write, lambda: open_split(tmp_path, "train", karpathy=path)


def _shards(folder: Path, samples: list[Any], with_index: bool) -> tuple[str, Change, Callable[[], Any]]:
    write_shards(samples, folder, "train", image_format="png")
    index = index_path(folder, "train")

    def change(field: str, value: Any) -> None:
        content = json.loads(index.read_text())
        del content["digest"]  # an index of an earlier version, which nobody sees was edited
        sample = content["samples"][0]
        if field == "image":
            sample["image_id"] = value
        else:
            sample["caption_ids" if field == "caption" else "captions"][0] = value
        index.write_text(json.dumps(content))
        if not with_index:
            _rewrite_text(folder / "train-000000.tar", sample)
            index.unlink()

    return "train.index.json" if with_index else "train-000000.tar", change, lambda: open_split(folder, "train")


def _rewrite_text(tar: Path, sample: dict[str, Any]) -> None:
    """The `.json` member of a sample with what the entry says, in the place of the one that is there."""
    offset, size = sample["members"]["json"]
    text = {name: sample[name] for name in ("image_id", "captions", "caption_ids")}
    data = bytearray(tar.read_bytes())
    written = json.dumps(text).encode()
    room = 512 * -(-size // 512)
    assert len(written) <= room
    data[offset : offset + room] = written.ljust(room, b"\0")
    head = offset - 512
    data[head + 124 : head + 136] = f"{len(written):011o}\0".encode()
    data[head + 148 : head + 156] = b" " * 8
    checksum = sum(data[head : head + 512])
    data[head + 148 : head + 156] = f"{checksum:06o}\0 ".encode()
    tar.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "field, value, named",
    [
        ("image", 2**63, f"image id {2**63} does not fit 64 bits"),
        ("caption", 2**64, f"caption id {2**64} does not fit 64 bits"),
        ("caption", 10.5, r"caption id 10\.5 is not a whole number"),
        ("text", ["one", "two"], r"caption \d+ is \['one', 'two'\], not a string"),
        ("text", 5, r"caption \d+ is 5, not a string"),
    ],
)
def test_every_shape_of_a_set_is_refused_at_opening_with_its_file(
    opened: tuple[str, Change, Callable[[], Any]], field: str, value: Any, named: str
) -> None:
    file, change, open_it = opened
    change(field, value)
    with pytest.raises(ValueError, match=named) as caught:
        open_it()
    assert file in str(caught.value) and "\n" not in str(caught.value)


def test_digits_in_quotes_are_the_number_in_every_shape(opened: tuple[str, Change, Callable[[], Any]]) -> None:
    _, change, open_it = opened
    change("caption", "77")
    assert open_it().caption_ids[0][0] == 77
