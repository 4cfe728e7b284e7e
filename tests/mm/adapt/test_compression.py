"""`mm-align compress`: what it writes is a run like any other, only smaller, and the base is left as it was."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.errors import UserError
from mm.adapt.compression import CompressConfig, compress
from mm.artifacts.run import Run, build_run, load_run, save_run
from mm.config import AlignConfig
from mm.data.module import AlignData
from mm.evaluation.models import FinishedRun
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bits": 16, "qat": 1}, "bits=16 has none"),
        ({"bits": 32, "qat": 1, "prune": ("text",)}, "bits=32 has none"),
        ({"bits": 32}, "bits=32 leaves a run as it is"),
        ({"prune_share": 0.1}, "it names none"),
    ],
)
def test_options_that_would_do_nothing_are_refused(given: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        CompressConfig("runs/x", **given)


def test_a_frozen_trunk_is_evaluated_as_it_is_stored(
    on_scenes: Callable[..., AlignConfig], open_data: Callable[[AlignConfig], AlignData], tmp_path: Path
) -> None:
    """Its features are those of the rounded trunk, which whoever loads the run will see."""
    config = on_scenes(model={"modalities": ("image", "text")}, train={"batch_size": 4}, image={"frozen": True})
    torch.manual_seed(0)
    save_run(build_run(config, open_data(config).vocabulary).eval(), tmp_path / "base")
    compress(CompressConfig(str(tmp_path / "base"), bits=4, runs=str(tmp_path)))
    with np.load(tmp_path / "base_int4" / "embeddings.npz") as stored:
        expected = stored["image"]
    finished = FinishedRun(tmp_path / "base_int4", rerank=0)
    dataset = finished.open("val")
    _, found = finished.evaluate(dataset, "val", samples=10)
    np.testing.assert_array_equal(found.arrays["image"], expected)


def test_experts_that_receive_nothing_go_and_nothing_changes(base: Path, tmp_path: Path) -> None:
    run = load_run(base)
    for block in run.model.backbone.blocks:
        block.moe.router.bias[[1, 5]] = -10
    save_run(run, base)
    compress(CompressConfig(str(base), bits=32, prune=("image", "text"), runs=str(tmp_path)))
    left = load_run(tmp_path / "base_pruned")
    described = json.loads((tmp_path / "base_pruned" / "result.json").read_text())["compressed"]
    experts = left.config.model.backbone.moe.num_experts
    assert described["experts"] == experts <= 6 and described["prune"] == ["image", "text"]
    assert left.compression is None and "weight_bits" not in described
    assert left.model.backbone.blocks[0].moe.w_in.shape[0] == experts == len(left.model.backbone.blocks[1].moe.w_out)
    for word in ("a red circle", "two blue stars"):
        found = load(str(tmp_path / "base_pruned")).encode_text(word)
        torch.testing.assert_close(found, load(str(base)).encode_text(word), atol=1e-6, rtol=1e-5)
    assert size(tmp_path / "base_pruned") < size(base)
    with pytest.raises(UserError, match="prune: audio is not read by this run, which has image, text"):
        compress(CompressConfig(str(base), prune=("audio",), runs=str(tmp_path)))
    assert not (tmp_path / "base_pruned_int8").exists()


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
