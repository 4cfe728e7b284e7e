"""A folder of images that is searched by text, image and sound; kept on disk, and brought up to date."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import mm
from mm.artifacts.run import Run
from mm.infer import base
from mm.infer.base import BaseEmbedder
from mm.infer.embedder import Embedder
from mm.infer.index import Hit, Index

Pixels = Callable[[int], list[np.ndarray]]


@pytest.fixture
def folder(pixels: Pixels, tmp_path: Path) -> Path:
    """Seven images, in two folders; and what is no image, is broken, or hidden."""
    root = tmp_path / "images"
    for number, array in enumerate(pixels(7)):
        path = root / ("" if number < 4 else "more") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    (root / "broken.jpg").write_bytes(b"no image")
    (root / "notes.txt").write_text("no image either")
    (root / ".hidden.png").write_bytes(b"passed over")
    (root / "gone.png").symlink_to(root / "nowhere.png")
    return root


def test_every_image_finds_itself(model: BaseEmbedder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "ROWS", 3)
    index = Index.build(model, folder)
    assert len(index) == 7 and index.vectors.shape == (7, 16) and index.vectors.dtype == torch.float32
    for file, vector in zip(index.files, index.vectors, strict=True):
        (hit,) = index.search(image=folder / file.path, k=1)
        assert hit.path == folder / file.path and hit.score == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(model.encode_image(folder / file.path), vector, rtol=0, atol=1e-5)


def test_text_and_audio_find_what_is_nearest(model: BaseEmbedder, folder: Path) -> None:
    index = Index.build(model, folder)
    clip = (np.sin(np.arange(3000) / 5).astype(np.float32), 16000)
    for hits, vector in (
        (index.search("a red circle", 3), model.encode_text("a red circle")),
        (index.search(audio=clip, k=3), model.encode_audio(clip)),
    ):
        cosines = index.vectors @ vector
        expected = cosines.argsort(descending=True)[:3].tolist()
        assert [hit.path for hit in hits] == [folder / index.files[place].path for place in expected]
        assert [hit.score for hit in hits] == pytest.approx(cosines[expected].tolist(), abs=1e-5)
    several = index.search(["a red circle", "stripes"], 20)
    assert [len(hits) for hits in several] == [7, 7] and isinstance(several[0][0], Hit)
    assert [hit.path for hit in several[0]][:3] == [hit.path for hit in index.search("a red circle", 3)]


@pytest.mark.parametrize(
    "asked, said",
    [
        ({}, "one of text, image, audio, got 0"),
        ({"text": "a", "image": "b.jpg"}, "got 2"),
        ({"text": "a", "k": 0}, "at least one"),
        ({"text": " "}, "blank"),
    ],
)
def test_a_search_for_nothing_is_refused(model: BaseEmbedder, folder: Path, asked: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Index.build(model, folder).search(**asked)


def test_what_cannot_be_read_is_counted_and_named(
    model: BaseEmbedder, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        index = Index.build(model, folder)
    assert list(index.skipped) == ["broken.jpg"] and "does not decode" in index.skipped["broken.jpg"]
    said = "\n".join(caplog.messages)
    assert "skipped broken.jpg: " in said and "1 × no image (.txt)" in said and "1 × link to nothing" in said
    assert "hidden" not in said


def test_a_folder_without_images_is_refused(model: BaseEmbedder, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copy(folder / "notes.txt", tmp_path / "empty")
    with pytest.raises(ValueError, match="empty holds no image"):
        Index.build(model, tmp_path / "empty")
    shutil.copy(folder / "broken.jpg", tmp_path / "empty")
    with pytest.raises(ValueError, match="1 could not be read"):
        Index.build(model, tmp_path / "empty")
    with pytest.raises(ValueError, match="no such folder"):
        Index.build(model, tmp_path / "nowhere")


def test_it_is_kept_whole_and_loads_with_its_model(model: BaseEmbedder, folder: Path, tmp_path: Path) -> None:
    index = Index.build(model, folder)
    path = index.save(tmp_path / "index")
    assert list((tmp_path / "index").iterdir()) == [path]
    for loaded in (Index.load(tmp_path / "index", model), mm.Index.load(tmp_path / "index", device="cpu")):
        assert torch.equal(loaded.vectors, index.vectors)
        assert (loaded.root, loaded.files, loaded.skipped) == (index.root, index.files, index.skipped)
        assert loaded.search("stripes", 3) == index.search("stripes", 3)


def test_another_model_is_refused(
    model: BaseEmbedder, folder: Path, tiny_run: Callable[..., Run], tmp_path: Path
) -> None:
    index = Index.build(model, folder)
    index.save(tmp_path / "index")
    other = Embedder(tiny_run(), "runs/other")
    with pytest.raises(ValueError, match=r"built by .*run .*not by runs/other .*search it with that model") as refused:
        Index.load(tmp_path / "index", other)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="not by runs/other"):
        Index.build(other, folder, index)


@pytest.mark.parametrize("damage", ["nothing", "noise", "half", "tensors", "rows"])
def test_what_is_no_index_is_refused_in_one_line(
    model: BaseEmbedder, folder: Path, tmp_path: Path, damage: str
) -> None:
    path = Index.build(model, folder).save(tmp_path / "index")
    content = path.read_bytes()
    path.unlink()
    if damage == "noise":
        path.write_bytes(b"noise")
    elif damage == "half":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "tensors":
        save_file({"vectors": torch.zeros(3, 16)}, path)
    elif damage == "rows":
        index = Index.build(model, folder)
        Index(model, index.root, index.files[:-1], index.vectors, {}).save(path.parent)
    with pytest.raises(ValueError, match=r"holds no index|is no index, or a damaged one") as refused:
        Index.load(tmp_path / "index", model)
    assert "\n" not in str(refused.value)


def test_only_files_that_changed_are_read_again(
    model: BaseEmbedder, folder: Path, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index.build(model, folder)
    Image.fromarray(pixels(9)[8]).save(folder / "new.png")
    Image.fromarray(pixels(8)[7]).save(folder / "2.png")
    os.utime(folder / "2.png", ns=(1, 1))  # another time of change, whatever the clock
    (folder / "0.png").unlink()
    read: list[str] = []
    reader = model.read

    def watched(modality: str, item: Path) -> object:
        read.append(item.name)
        return reader(modality, item)

    monkeypatch.setattr(model, "read", watched)
    updated = Index.build(model, folder, index)
    assert sorted(read) == ["2.png", "broken.jpg", "new.png"]
    monkeypatch.undo()
    fresh = Index.build(model, folder)
    assert updated.files == fresh.files and list(updated.skipped) == ["broken.jpg"]
    torch.testing.assert_close(updated.vectors, fresh.vectors, rtol=0, atol=1e-5)


def test_an_index_of_another_folder_is_not_replaced(model: BaseEmbedder, folder: Path) -> None:
    index = Index.build(model, folder)
    with pytest.raises(ValueError, match="the older index is of"):
        Index.build(model, folder / "more", index)
