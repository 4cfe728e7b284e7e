"""The audio encoder: audio clips in, log-mel out, and silence after the end is not audio."""

from dataclasses import replace

import pytest
import torch

from encoders import AudioConfig, AudioEncoder
from encoders.audio import SILENCE, LogMel
from encoders.quantizer import QuantizerConfig
from encoders.trunks import NO_WEIGHTS
from encoders.vqvae import BottleneckConfig

SMALL = AudioConfig(
    seconds=0.32,
    width=16,
    depth=1,
)
BOTTLENECK = BottleneckConfig(quantizer=QuantizerConfig(num_codes=16, width=8))
SAMPLES = int(SMALL.seconds * SMALL.sample_rate)
PER_TOKEN = 8 * SMALL.hop


def tone(hertz: float, samples: int = SAMPLES) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(samples) / SMALL.sample_rate)[None]


@pytest.mark.parametrize(("real", "tokens"), [(0, 0), (1, 1), (PER_TOKEN, 1), (PER_TOKEN + 1, 2), (SAMPLES, 4)])
def test_the_mask_covers_exactly_the_tokens_with_real_samples(real: int, tokens: int) -> None:
    encoder = AudioEncoder(SMALL, BOTTLENECK, 32)
    found = encoder.features(torch.zeros(1, SAMPLES), torch.arange(SAMPLES)[None] < real)
    assert found.mask.sum().item() == tokens and found.mask[0, :tokens].all()
    assert encoder.features(torch.zeros(1, SAMPLES)).mask.all()


def test_a_higher_tone_lies_in_a_higher_band() -> None:
    log_mel = LogMel(SMALL)
    bands = [log_mel(tone(hertz))[0].mean(1).argmax().item() for hertz in (300, 1000, 3000)]
    assert bands == sorted(set(bands))


def test_log_mel_is_fp32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        mel = LogMel(SMALL)(tone(440))
    assert mel.dtype == torch.float32
    torch.testing.assert_close(mel, LogMel(SMALL)(tone(440)))


def test_a_reconstruction_has_the_frames_of_its_codes() -> None:
    encoder = AudioEncoder(SMALL, BOTTLENECK, 32)
    out = encoder(tone(440))
    assert out.tokens.shape == (1, 4, 32) and encoder.reconstruct(out.codes).shape == (1, 64, 32)


def test_what_lies_after_the_end_is_not_reconstructed() -> None:
    """The loss over real frames does not change when the target's padding does."""
    encoder = AudioEncoder(SMALL, BOTTLENECK, 32).eval()
    sound, mask = tone(440), torch.arange(SAMPLES)[None] < 2 * PER_TOKEN
    features = encoder.features(sound * mask, mask)
    noisy = sound.clone()
    noisy[:, 2 * PER_TOKEN + SMALL.window :] = torch.randn(1, SAMPLES - 2 * PER_TOKEN - SMALL.window)
    losses = [encoder(target, features=features).losses["reconstruction"] for target in (sound, noisy)]
    torch.testing.assert_close(losses[0], losses[1])
    assert (encoder(None, features=features).codes[0, 2:] == -1).all()


def test_a_trunk_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="use scratch or timm/<name>"):
        AudioEncoder(replace(SMALL, trunk="open_clip/ViT-B-32"), BOTTLENECK, 32)


PICTURE_MODELS = {"test_vit": (1, 4, 2), "test_resnet": (0, 2, 1)}
"""timm models of stride 16 and 32: prefix tokens, and the grid over 64 bands × 32 frames."""


@pytest.fixture(params=PICTURE_MODELS)
def picture_model(request: pytest.FixtureRequest) -> tuple[AudioEncoder, tuple[int, int, int]]:
    torch.manual_seed(0)
    config = replace(SMALL, trunk=f"timm/{request.param}", weights=NO_WEIGHTS)
    return AudioEncoder(config, BOTTLENECK, 32).eval(), PICTURE_MODELS[request.param]


def test_a_picture_model_reads_the_log_mel_as_its_library_does(
    picture_model: tuple[AudioEncoder, tuple[int, int, int]],
) -> None:
    encoder, (prefix, rows, columns) = picture_model
    features = encoder.features(tone(440))
    assert features.tokens.shape[:2] == (1, prefix + rows * columns) and features.mask.all()
    image = encoder.log_mel(tone(440))[:, None]
    expected = encoder.trunk.model.forward_features(image)  # type: ignore[union-attr]
    expected = expected if expected.ndim == 3 else expected.flatten(2).transpose(1, 2)
    torch.testing.assert_close(features.tokens, expected, rtol=1e-5, atol=1e-5)
    assert encoder(None, features=features).losses["reconstruction"].isfinite()


@pytest.mark.parametrize("real, columns", [(0, 0), (1, 1), (16 * 160, 1), (16 * 160 + 1, 2)])
def test_a_picture_models_tokens_are_masked_by_their_time(real: int, columns: int) -> None:
    encoder = AudioEncoder(replace(SMALL, trunk="timm/test_vit", weights=NO_WEIGHTS), BOTTLENECK, 32)
    mask = encoder.features(tone(440), torch.arange(SAMPLES)[None] < real).mask
    assert mask[0, 0] == (real > 0)
    expected = torch.arange(2) < columns
    assert torch.equal(mask[0, 1:].view(4, 2), expected.expand(4, 2))


def short(trunk: str) -> tuple[AudioEncoder, torch.Tensor, torch.Tensor]:
    """An encoder of 64 frames, a clip, and which samples are real: not a quarter."""
    torch.manual_seed(0)
    encoder = AudioEncoder(replace(SMALL, seconds=0.64, trunk=trunk, weights=NO_WEIGHTS), BOTTLENECK, 32).eval()
    return encoder, tone(440, 2 * SAMPLES), torch.arange(2 * SAMPLES)[None] < 2400


@pytest.mark.parametrize("trunk", ["scratch", "timm/test_vit", "timm/test_resnet"])
def test_padding_changes_nothing(trunk: str) -> None:
    """Neither what stands in it, nor how much of it there is; without a mask, all that is given is real."""
    encoder, sound, mask = short(trunk)
    padded = encoder(sound * mask, mask)
    others = [encoder(sound, mask), encoder(sound[:, :2400], mask[:, :2400]), encoder(sound[:, :2400])]
    for other in others:
        assert torch.equal(other.mask, padded.mask) and not padded.mask.all()
        torch.testing.assert_close(other.tokens[other.mask], padded.tokens[padded.mask])
        torch.testing.assert_close(other.summary, padded.summary)
        assert torch.equal(other.codes, padded.codes)
        torch.testing.assert_close(other.losses["reconstruction"], padded.losses["reconstruction"])


def test_a_length_or_bands_that_are_not_whole_patches_are_filled_with_silence() -> None:
    """0.3 seconds are 30 frames: a patch of 16 ends in two silent ones, and no audio is lost."""
    encoder = AudioEncoder(replace(SMALL, seconds=0.3, trunk="timm/test_vit", weights=NO_WEIGHTS), BOTTLENECK, 32)
    features = encoder.features(tone(440, 4800))
    assert encoder.frames == 32 and features.tokens.shape[1] == 1 + 4 * 2 and features.mask.all()
    torch.testing.assert_close(LogMel(SMALL)(torch.zeros(1, SAMPLES)), torch.full((1, 64, 32), SILENCE))
    encoder = AudioEncoder(replace(SMALL, trunk="timm/vit_small_patch14_dinov2", weights=NO_WEIGHTS), BOTTLENECK, 32)
    assert encoder.features(tone(440)).tokens.shape[1] == encoder.trunk.tokens == 1 + 5 * 3  # 70 bands × 42 frames
