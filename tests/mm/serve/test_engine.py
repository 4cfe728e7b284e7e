"""What computes: a run in the bits in which it is stored, or in those that are asked for."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mm.artifacts.run import Run, quantize_run, save_run
from mm.batch import Batch
from mm.commands import main
from mm.compress.quantize import QATConfig
from mm.config import AlignConfig
from mm.infer.decoding import Decoding
from mm.infer.embedder import Embedder
from mm.serve.config import RequestLimits, ServeConfig
from mm.serve.engine import Continuing, RunEngine, ServeRun
from mm.serve.inputs import InputReader

TEXTS = ["a red circle", "two blue squares"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `runs` leaves them for the tests of this file."""
    return tmp_path_factory.mktemp("stored")


@pytest.fixture
def runs(stored: Path, tiny: AlignConfig, tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch]) -> Path:
    """Folder of a run `float`, and of `int8`, which is the same in 8 bits."""
    if not any(stored.iterdir()):
        run = tiny_run(model=replace(tiny.model, generate=True))
        run.model(tiny_batch())  # the codebooks have seen data
        save_run(run.eval(), stored / "float")
        save_run(quantize_run(run, QATConfig()), stored / "int8")
    return stored


def engine(run: Path, bits: object = None) -> RunEngine:
    return ServeRun(str(run), "cpu", Decoding(4), bits)()  # type: ignore[arg-type]


def vectors(engine: RunEngine) -> np.ndarray:
    reader = InputReader(engine.embedder.processor, RequestLimits())
    rows = [reader.read("text", text).payload for text in TEXTS]
    return np.stack(engine.run("text", rows, lambda place, text: None))


def test_a_run_in_8_bits_computes_what_the_compressed_run_does(runs: Path) -> None:
    plain, rounded, compressed = engine(runs / "float"), engine(runs / "float", 8), engine(runs / "int8")
    assert (plain.bits, rounded.bits, compressed.bits) == (32, 8, 8)
    assert rounded.digest == compressed.digest != plain.digest
    np.testing.assert_array_equal(vectors(rounded), vectors(compressed))
    assert 1e-6 < np.abs(vectors(rounded) - vectors(plain)).max() < 0.2


def test_a_compressed_run_is_served_in_its_own_bits_alone(runs: Path) -> None:
    np.testing.assert_array_equal(vectors(engine(runs / "int8", 8)), vectors(engine(runs / "int8")))
    with pytest.raises(ValueError, match="int8 cannot be served in 4 bits: compressed already, to 8 bits"):
        engine(runs / "int8", 4)


def test_captions_that_join_others_are_those_that_are_written_alone(
    tiny: AlignConfig, tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch]
) -> None:
    run = tiny_run(model=replace(tiny.model, generate=True))
    run.model(tiny_batch())
    for weight in run.model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)  # so that what is seen decides what is written
    writing = RunEngine(Embedder(run.eval()), Decoding(6))
    images = tiny_batch(rows=5).inputs["image"].numpy()
    rows = [(image, None) for image in images]
    alone = [writing.run("caption/image", [row], lambda place, text: None)[0] for row in rows]
    assert len(set(alone)) > 1 and writing.joins == ["caption/image", "caption/audio"]
    later = [[], rows[2:3], [], rows[3:]]
    ended: dict[int, str] = {}
    continuing = Continuing(lambda most: later.pop(0) if later else [], ended.__setitem__)
    assert writing.run("caption/image", rows[:2], lambda place, text: None, continuing) == alone
    assert ended == dict(enumerate(alone))
    assert not later, "others joined while there was something to join"
    assert RunEngine(writing.embedder, Decoding(6, beams=2)).joins == []


def test_bits_that_do_not_exist_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mm-align", "serve", "runs/x", "--bits", "3"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and "bits" in said and "\n" not in said


def test_what_is_served_is_in_the_bits_that_were_asked_for_and_so_is_its_index(runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("litserve", reason="serving needs the extra serve")
    from mm.serve.command import served_run

    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((40, 40, 3), 90, dtype=np.uint8)).save(tmp_path / "images" / "grey.png")
    config = ServeConfig(str(runs / "float"), tmp_path / "index", tmp_path / "images", bits=8, device="cpu")
    served = served_run(config)
    built = served.build()
    assert isinstance(built, RunEngine) and built.bits == 8
    assert served.gallery is not None and served.gallery.model.digest == built.digest
    listing = json.dumps([file.path for file in served.gallery.index.files])
    assert listing == '["grey.png"]'
