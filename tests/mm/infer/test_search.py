"""`mm-align search`: indexed, searched and shown."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm.commands import main
from mm.infer.base import BaseEmbedder
from mm.infer.index import FILE
from mm.infer.search import search


@pytest.fixture
def folder(pixels: Callable[[int], list[np.ndarray]], tmp_path: Path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    for number, array in enumerate(pixels(3)):
        Image.fromarray(array).save(root / f"[b]{number}.png")
    return root


def test_a_folder_is_indexed_once_and_searched(
    model: BaseEmbedder,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    index = tmp_path / "index"
    search("a red circle", index, k=2, images=folder, model=model.name, device="cpu")
    first = capsys.readouterr().out
    lines = first.splitlines()
    assert max(map(len, lines)) <= 80 and "3 images" in first.replace("\n", " ")
    assert sum("│" in line and line.split("│")[1].strip().isdigit() for line in lines) == 2
    stored = (index / FILE).stat().st_mtime_ns
    search("a red circle", index, k=2, device="cpu")  # by the index's own model
    assert capsys.readouterr().out == first and (index / FILE).stat().st_mtime_ns == stored
    monkeypatch.setenv("COLUMNS", "300")
    search(str(folder / "[b]1.png"), index, by="image", k=1, device="cpu")
    found = capsys.readouterr().out
    assert "1.000" in found and "[b]1.png │" in found  # brackets are no markup


def test_the_command_takes_its_words_in_any_order(
    model: BaseEmbedder, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = str(tmp_path / "index")
    main(["search", "stripes", "--index", index, "--images", str(folder), "--model", model.name, "--device", "cpu"])
    built = capsys.readouterr().out
    main(["search", "--device", "cpu", "--index", index, "stripes"])
    assert capsys.readouterr().out == built and "stripes" in built


@pytest.mark.parametrize(
    "asked, said",
    [
        ({}, "holds no index: give --images FOLDER and --model RUN"),
        ({"images": Path("x")}, "holds no index: give --images FOLDER and --model RUN"),
        ({"images": Path("x"), "model": "runs/nowhere"}, "runs/nowhere: no such folder"),
    ],
)
def test_a_search_without_an_index_says_how_to_build_one(tmp_path: Path, asked: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        search("a", tmp_path / "index", **asked)


def test_a_query_by_file_needs_the_file(model: BaseEmbedder, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a red circle: no such image file"):
        search("a red circle", tmp_path / "index", by="image", images=folder, model=model.name, device="cpu")
