"""Encoders on disk: what is kept, what is left to the backbone's side, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from encoders import BottleneckConfig, ImageConfig, ImageEncoder
from encoders.state import faces_backbone, load_encoder, save_encoder

BOTTLENECK = BottleneckConfig()
SMALL = ImageConfig(size=16, stride=8, width=16, depth=1)


def test_a_saved_encoder_starts_another_of_any_backbone_width(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved, other = ImageEncoder(SMALL, BOTTLENECK, width=8), ImageEncoder(SMALL, BOTTLENECK, width=24)
    saved(torch.randint(0, 255, (4, 3, 16, 16), dtype=torch.uint8))  # the codebook has seen data
    own = {name: value.clone() for name, value in other.state_dict().items() if faces_backbone(name)}
    save_encoder(saved, tmp_path / "model.safetensors")
    load_encoder(other, tmp_path / "model.safetensors")
    codes = torch.arange(4).view(1, 4, 1)
    torch.testing.assert_close(other.reconstruct(codes), saved.reconstruct(codes))
    theirs = saved.state_dict()
    for name, value in other.state_dict().items():
        assert torch.equal(value, own[name] if faces_backbone(name) else theirs[name]), name
    assert own


def test_an_encoder_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    save_encoder(ImageEncoder(SMALL, BOTTLENECK, width=8), tmp_path / "model.safetensors")
    wider = ImageEncoder(replace(SMALL, width=32), BOTTLENECK, width=8)
    before = {k: v.clone() for k, v in wider.state_dict().items()}
    with pytest.raises(ValueError, match=r"bottleneck\.down\.weight is \(32, 16\) in the file and \(32, 32\) here"):
        load_encoder(wider, tmp_path / "model.safetensors")
    torch.testing.assert_close(wider.state_dict(), before, rtol=0, atol=0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=r"nowhere\.safetensors"):
        load_encoder(ImageEncoder(SMALL, BOTTLENECK, width=8), tmp_path / "nowhere.safetensors")
