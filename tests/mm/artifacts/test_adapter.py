"""Folders of adapters: chains of bases that do not end at a run."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from mm.artifacts.adapter import DESCRIPTION
from mm.artifacts.run import load_run
from mm.compress.lora import LoraConfig


def adapter_of(folder: Path, base: Path) -> None:
    """Write the two files that say what an adapter is and what its base is, without tensors."""
    folder.mkdir()
    (folder / DESCRIPTION).write_text(json.dumps({"kind": "lora", "config": asdict(LoraConfig()), "base": {}}))
    data = {"root": "photos", "train": "train", "val": "val", "audio_root": None}
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": str(base), "data": data}))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_adapters_that_are_each_others_base_are_refused(tmp_path: Path, length: int) -> None:
    names = [f"adapter{number}" for number in range(length)]
    for number, name in enumerate(names):
        adapter_of(tmp_path / name, tmp_path / names[(number + 1) % length])
    with pytest.raises(ValueError, match="has no run beneath it"):
        load_run(tmp_path / names[0])


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    adapter_of(tmp_path / "adapter", tmp_path / "gone")
    with pytest.raises(ValueError, match=r"needs its base: .*gone holds no finished run"):
        load_run(tmp_path / "adapter")
