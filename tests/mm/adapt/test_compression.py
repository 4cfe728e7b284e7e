"""`mm-align compress`: what it writes is a run like any other, only smaller, and the base is left as it was."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.errors import UserError
from mm.adapt.compression import CompressConfig, compress
from mm.artifacts.run import Run, build_run, load_run, save_run
from mm.config import AlignConfig
from mm.data.module import AlignData
from mm.infer.loading import load


@pytest.fixture
def base(on_scenes: Callable[..., AlignConfig], open_data: Callable[[AlignConfig], AlignData], tmp_path: Path) -> Path:
    """The folder of a finished run of images and text on a few scenes."""
    config = on_scenes(model={"modalities": ("image", "text")}, train={"batch_size": 4})
    torch.manual_seed(0)
    save_run(build_run(config, open_data(config).vocabulary).eval(), tmp_path / "base")
    return tmp_path / "base"


def size(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size


def test_a_compressed_run_is_a_run_and_is_not_compressed_again(base: Path, tmp_path: Path) -> None:
    before = (base / "model.safetensors").read_bytes()
    config = CompressConfig(str(base), bits=4, runs=str(tmp_path))
    compress(config)
    folder = tmp_path / "base_int4"
    result = json.loads((folder / "result.json").read_text())
    assert result["compressed"]["weight_bits"] == 4 and result["compressed"]["ledger"][-1]["stored"] == size(folder)
    assert "RSUM" in result["metrics"] and (folder / "embeddings.npz").is_file() and (folder / "report.html").is_file()
    assert size(folder) < 0.5 * size(base) and (base / "model.safetensors").read_bytes() == before
    # Nothing trained: the settings are those of the training that there was.
    assert result["config"]["train"]["steps"] == load_run(base).config.train.steps == 10
    vector = load(str(folder)).encode_text("a red circle")
    plain = load(str(base)).encode_text("a red circle")
    assert 0.9 < float(vector @ plain) < 1 - 1e-6
    with pytest.raises(UserError, match="is compressed already, to 4 bits"):
        compress(replace(config, run=str(folder)))


def test_half_the_bytes_are_bfloat16_which_has_no_grid_to_train_on(base: Path, tmp_path: Path) -> None:
    compress(CompressConfig(str(base), bits=16, runs=str(tmp_path)))
    folder = tmp_path / "base_bf16"
    assert size(folder) < 0.65 * size(base)
    assert json.loads((folder / "result.json").read_text())["compressed"]["activation_bits"] == 32
    with pytest.raises(UserError, match="bits=16 is bfloat16"):
        CompressConfig(str(base), bits=16, qat=1)


def test_steps_on_the_grid_change_the_weights_and_end_on_it(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="its fake quantisers are torchao's")
    compress(CompressConfig(str(base), qat=1, learning_rate=1e-2, runs=str(tmp_path)))
    trained: Run = load_run(tmp_path / "base_int8_qat")
    plain = load_run(base)
    name = "backbone.blocks.0.moe.w_in"
    moved = (trained.state_dict()[name] - plain.state_dict()[name]).abs().max()
    step = trained.packed[name].scale.float().max()
    # Rounding alone moves a weight by half a step.
    assert moved > 0.6 * step and torch.equal(trained.packed[name].unpack(), trained.state_dict()[name])
