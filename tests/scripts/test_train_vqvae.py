"""train_vqvae as a user runs it, in this process: importing torch and lightning again would be most of the time."""

import csv
import json
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from encoders import BottleneckConfig, ImageConfig
from encoders.quantizer import QuantizerConfig
from mm.artifacts.run import build_run
from mm.config import AlignConfig
from mm.data.scenes import write_scenes
from mm.model.multimodal import ModelConfig

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_vqvae.py"
SMALL = {
    "image": ["--image.size", "32", "--image.width", "16", "--image.depth", "1"],
    "audio": ["--audio.width", "16", "--audio.depth", "1"],
    "text": ["--text.width", "16", "--text.depth", "1", "--text.heads", "2"],
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", sizes={"train": 24, "val": 16}, image_size=32)


def train(folder: Path, scenes: Path, modality: str, *flags: str) -> Path:
    sys.argv = [
        str(SCRIPT),
        "--modality",
        modality,
        "--data.root",
        str(scenes),
        "--runs",
        str(folder),
        *SMALL[modality],
        "--bottleneck.quantizer.num_codes",
        "16",
        "--train.batch_size",
        "8",
        "--train.precision",
        "fp32",
        "--train.accelerator",
        "cpu",
        *flags,
    ]
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return folder / f"vqvae_{modality}"


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_a_run_leaves_weights_a_result_and_pictures(tmp_path: Path, scenes: Path, modality: str) -> None:
    run = train(tmp_path, scenes, modality, "--train.steps", "3")
    result = json.loads((run / "result.json").read_text())
    metrics = result["metrics"]
    assert metrics["reconstruction"] > 0 and 1 <= metrics["perplexity"] <= metrics["used_codes"] <= 16
    assert 0 <= metrics["bits_per_token"] <= metrics["bits_per_token_fixed"] == 4
    assert result["protocol"]["images"] == 16 and result["config"]["modality"] == modality
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 3
    assert json.loads((run / "model.json").read_text())["kind"] == "vqvae"
    assert Image.open(run / "reconstructions.png").size[0] > 100
    assert (run / "reconstructions.txt").is_file() == (modality == "text")


def test_a_run_that_is_resumed_ends_where_an_uninterrupted_one_does(tmp_path: Path, scenes: Path) -> None:
    whole = train(tmp_path / "whole", scenes, "image", "--train.steps", "5", "--train.checkpoint_every", "3")
    halves = tmp_path / "halves"
    halves.mkdir()
    shutil.copytree(whole, halves / "vqvae_image")
    for after_the_interruption in (halves / "vqvae_image" / "checkpoints").glob("*.ckpt"):
        if torch.load(after_the_interruption, weights_only=True)["global_step"] != 3:
            after_the_interruption.unlink()
    train(halves, scenes, "image", "--train.steps", "5", "--train.checkpoint_every", "3", "--resume", "true")
    finished, resumed = (load_file(run / "model.safetensors") for run in (whole, halves / "vqvae_image"))
    torch.testing.assert_close(resumed, finished, rtol=0, atol=0)


def test_an_aligned_model_starts_from_the_run(tmp_path: Path, scenes: Path) -> None:
    weights = train(tmp_path, scenes, "image", "--train.steps", "2") / "model.safetensors"
    config = AlignConfig(
        encoder_weights={"image": str(weights)},
        model=ModelConfig(modalities=("image", "audio")),
        image=ImageConfig(size=32, width=16, depth=1),
        bottleneck=BottleneckConfig(quantizer=QuantizerConfig(num_codes=16)),
    )
    started = build_run(config).model.encoders["image"].state_dict()
    for name, value in load_file(weights).items():
        assert torch.equal(started[name], value), name
    with pytest.raises(ValueError, match=r"codebook is \(16, 32\) in the file and \(512, 32\) here"):
        build_run(replace(config, bottleneck=BottleneckConfig()))


def test_settings_that_make_no_sense_are_one_line_and_exit_code_2(
    tmp_path: Path,
    scenes: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, scenes, "image", "--train.steps", "2", "--bottleneck.mode", "continuous")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("train_vqvae: bottleneck.mode=continuous")
    for option, value, named in (("steps", "0", "train.steps=0"), ("accelerator", "tpu", "train.accelerator")):
        with pytest.raises(SystemExit) as stopped:
            train(tmp_path, scenes, "image", f"--train.{option}", value)
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("train_vqvae: ") and named in line


def test_metrics_are_written_as_training_goes(tmp_path: Path, scenes: Path) -> None:
    run = train(tmp_path, scenes, "image", "--train.steps", "11")
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert float(rows[0]["train/reconstruction"]) > 0 and {"perplexity", "used", "revived", "step"} <= rows[0].keys()
