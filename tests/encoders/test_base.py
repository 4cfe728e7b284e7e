"""What every encoder promises: a frozen trunk does not move, and side results are returned."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from encoders import BottleneckConfig, Encoder, EncoderOutput
from mm.batch import Batch
from mm.config import AlignConfig
from mm.modalities import MODALITIES, build_encoder


@pytest.fixture
def build(tiny: AlignConfig, vocabulary: torch.Tensor) -> Callable[..., Encoder]:
    """build(modality, **changes of its config) -> an encoder of width 32."""

    def make(modality: str, bottleneck: BottleneckConfig | None = None, **changes: object) -> Encoder:
        torch.manual_seed(0)
        config = replace(getattr(tiny, modality), **changes)
        return build_encoder(modality, config, bottleneck or tiny.bottleneck, 32, vocabulary)

    return make


def forward(encoder: Encoder, batch: Batch, modality: str, reconstruct: bool = True) -> EncoderOutput:
    return encoder(batch.inputs[modality], batch.masks.get(modality), reconstruct=reconstruct)


@pytest.mark.parametrize("modality", MODALITIES)
def test_an_encoder_gives_tokens_codes_mask_and_named_losses(
    build: Callable[..., Encoder], tiny_batch: Callable[..., Batch], modality: str
) -> None:
    out = forward(build(modality), tiny_batch(), modality)
    rows, count, width = out.tokens.shape
    assert (rows, width) == (4, 32) and out.codes.shape == (4, count, 1) and out.mask.shape == (4, count)
    assert {"commitment", "reconstruction"} <= out.losses.keys() and {"perplexity", "bypass_gate"} <= out.metrics.keys()
    assert torch.equal(out.codes[..., 0] >= 0, out.mask)


@pytest.mark.parametrize("modality", MODALITIES)
def test_without_a_target_nothing_is_reconstructed(
    build: Callable[..., Encoder], tiny_batch: Callable[..., Batch], modality: str
) -> None:
    out = forward(build(modality), tiny_batch(), modality, reconstruct=False)
    assert "reconstruction" not in out.losses


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_frozen_trunk_stays_in_evaluation_mode_and_gets_no_gradient(
    build: Callable[..., Encoder], tiny_batch: Callable[..., Batch], modality: str
) -> None:
    encoder = build(modality, frozen=True).train()
    assert encoder.training and not any(m.training for m in encoder.trunk.modules())
    assert not any(p.requires_grad for p in encoder.trunk.parameters())
    before = {k: v.clone() for k, v in encoder.trunk.state_dict().items()}
    out = forward(encoder, tiny_batch(), modality)
    (out.tokens.square().mean() + sum(out.losses.values())).backward()
    assert all(p.grad is None for p in encoder.trunk.parameters())
    assert encoder.bottleneck.down.weight.grad.abs().sum() > 0
    torch.testing.assert_close(encoder.trunk.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_trained_trunk_learns(build: Callable[..., Encoder], tiny_batch: Callable[..., Batch], modality: str) -> None:
    encoder = build(modality).train()
    out = forward(encoder, tiny_batch(), modality)
    (out.tokens.square().mean() + sum(out.losses.values())).backward()
    without = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_forward_leaves_nothing_behind(
    build: Callable[..., Encoder], tiny_batch: Callable[..., Batch], modality: str
) -> None:
    """No tensor appears as an attribute of any module: results are returned."""

    def attributes(module: nn.Module) -> set[tuple[str, str]]:
        return {(name, key) for name, m in module.named_modules() for key, v in vars(m).items() if torch.is_tensor(v)}

    encoder = build(modality).train()
    before = attributes(encoder)
    forward(encoder, tiny_batch(), modality)
    assert attributes(encoder) == before


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_continuous_encoder_has_no_codes(
    build: Callable[..., Encoder], tiny: AlignConfig, tiny_batch: Callable[..., Batch], modality: str
) -> None:
    encoder = build(modality, replace(tiny.bottleneck, mode="continuous"))
    out = forward(encoder, tiny_batch(), modality)
    assert (out.codes == -1).all() and not out.losses
    with pytest.raises(ValueError, match="has no decoder"):
        encoder.reconstruct(out.codes)
