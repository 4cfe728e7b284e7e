"""A tiny run on disk, loaded as a user loads one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mm
from mm.artifacts.run import Run, save_run
from mm.batch import Batch
from mm.infer.base import BaseEmbedder


@pytest.fixture
def save_tiny(tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch], tmp_path: Path) -> Callable[..., Path]:
    """save_tiny(name, **changes of the config) -> the folder of a run."""

    def save(name: str, **changes: object) -> Path:
        run = tiny_run(**changes)
        run.model(tiny_batch())  # the codebooks have seen data
        save_run(run, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture(scope="session")
def loaded() -> dict[str, BaseEmbedder]:
    """Loading takes seconds: the first test that needs the model leaves it here."""
    return {}


@pytest.fixture
def model(loaded: dict[str, BaseEmbedder], save_tiny: Callable[..., Path]) -> BaseEmbedder:
    """A tiny run, shared: nobody changes its weights."""
    if "model" not in loaded:
        loaded["model"] = mm.load(str(save_tiny("run")), device="cpu")
    return loaded["model"]


@pytest.fixture
def pixels() -> Callable[[int], list[np.ndarray]]:
    """pixels(N) -> N noise images (20, 30, 3) uint8, the same every time."""
    return lambda count: list(np.random.default_rng(0).integers(0, 256, (count, 20, 30, 3), dtype=np.uint8))
