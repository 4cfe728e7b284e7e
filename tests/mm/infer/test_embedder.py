"""A finished run in five lines: unit vectors that do not depend on what else is asked for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import mm
from mm.artifacts.run import Run, save_run
from mm.batch import Batch
from mm.infer import embedder
from mm.infer.embedder import Embedder


@pytest.fixture
def model(tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch], tmp_path: Path) -> Embedder:
    run = tiny_run()
    run.model(tiny_batch())  # the codebooks have seen data
    save_run(run, tmp_path / "run")
    return mm.load(str(tmp_path / "run"))


def images(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 20, 30, 3), dtype=np.uint8))


def test_vectors_are_unit_and_one_for_each_input(model: Embedder) -> None:
    clips = [(np.sin(np.arange(3000) / k).astype(np.float32), 16000) for k in (5, 9)]
    for vectors, count in (
        (model.encode_image(images(3)), 3),
        (model.encode_text(["a red circle", "stripes"]), 2),
        (model.encode_audio(clips), 2),
        (model.encode_text([]), 0),
    ):
        assert vectors.shape == (count, 16) and vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(count))


def test_a_vector_does_not_depend_on_its_neighbours(model: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model.encode_text(["a red circle", "two blue squares left of a star", "stripes"])
    monkeypatch.setattr(embedder, "ROWS", 1)
    torch.testing.assert_close(model.encode_text(["a red circle", "stripes"]), whole[[0, 2]])


def test_matching_is_pair_by_pair(model: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = images(3)
    logits = model.match(seen, ["red", "blue", "stripes"])
    assert logits.shape == (3,)
    monkeypatch.setattr(embedder, "ROWS", 2)
    torch.testing.assert_close(model.match(seen, ["red", "blue", "stripes"]), logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="3 images and 1 captions"):
        model.match(seen, ["red"])


def test_a_string_is_not_a_list_of_letters(model: Embedder) -> None:
    with pytest.raises(ValueError, match="takes a list"):
        model.encode_text("stripes")  # type: ignore[arg-type]


def test_the_public_names_are_there_and_no_others() -> None:
    for name in mm.__all__:
        assert getattr(mm, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = mm.nothing  # type: ignore[attr-defined]
