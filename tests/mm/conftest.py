"""A few scenes on disk, and what reads them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mm.config import AlignConfig, encoders_of, plan_of
from mm.data.module import AlignData
from mm.data.scenes import write_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("mm") / "scenes", sizes={"train": 20, "val": 9}, image_size=32)


@pytest.fixture
def on_scenes(tiny: AlignConfig, scenes: Path, tmp_path: Path) -> Callable[..., AlignConfig]:
    """on_scenes(**changes) -> the tiny config on these scenes, caching in tmp_path; a dict changes a part."""

    def build(**changes: object) -> AlignConfig:
        text = replace(tiny.text, max_tokens=24)
        base = replace(tiny, data=replace(tiny.data, root=str(scenes), cache=str(tmp_path)), text=text)
        parts = {k: replace(getattr(base, k), **v) if isinstance(v, dict) else v for k, v in changes.items()}
        return replace(base, **parts)

    return build


@pytest.fixture
def open_data() -> Callable[[AlignConfig], AlignData]:
    def build(config: AlignConfig) -> AlignData:
        data = AlignData(config.data, encoders_of(config), plan_of(config), config.train.precision)
        data.setup()
        return data

    return build
