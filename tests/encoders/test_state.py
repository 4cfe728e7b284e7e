"""Weights on disk: what is read, kept and refused, what a digest sees; nothing in a file is executed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from encoders import BottleneckConfig, ImageConfig, ImageEncoder
from encoders.state import faces_backbone, load_encoder, load_weights, read_weights, save_encoder, weights_digest

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


def test_weights_are_read_in_float32_and_counts_as_they_are(tmp_path: Path) -> None:
    state = {"weight": torch.tensor([0.5, -2.0]).half(), "steps": torch.tensor(7)}
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "model.pt")
    for name in ("model.safetensors", "model.pt"):
        found = read_weights(tmp_path / name)
        assert found["weight"].dtype == torch.float32 and found["weight"].tolist() == [0.5, -2.0]
        assert found["steps"].dtype == torch.int64 and found["steps"] == 7


def test_another_models_file_is_refused_by_the_first_difference(tmp_path: Path) -> None:
    save_file({"bias": torch.zeros(2), "weight": torch.zeros(2, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit .* weight is \(2, 4\) .* \(2, 3\) here"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"bias is .* in the file and absent here"):
        load_weights(nn.Linear(4, 2, bias=False), tmp_path / "model.safetensors")


class Bomb:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (Path.touch, (Path("exploded"),))


def test_a_file_is_read_and_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match=r"bomb\.pt"):
        read_weights(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_digest_is_of_every_value_and_name() -> None:
    linear, same = nn.Linear(3, 2), nn.Linear(3, 2)
    same.load_state_dict(linear.state_dict())
    assert weights_digest(linear) == weights_digest(same)
    assert weights_digest(linear) != weights_digest(nn.ModuleDict({"linear": linear}))
    with torch.no_grad():
        same.bias[1] += 1e-3
    assert weights_digest(linear) != weights_digest(same)


def test_a_digest_is_blind_to_the_sign_of_zero() -> None:
    """An average of weights that stand still turns it: their cached features would be made again."""
    trunk, averaged = nn.Linear(3, 2), nn.Linear(3, 2)
    averaged.load_state_dict(trunk.state_dict())
    with torch.no_grad():
        next(trunk.parameters()).flatten()[:2].copy_(torch.tensor([0.0, 1.0]))
        next(averaged.parameters()).flatten()[:2].copy_(torch.tensor([-0.0, 1.0]))
    assert weights_digest(trunk) == weights_digest(averaged)
