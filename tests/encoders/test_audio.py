"""The audio encoder: audio clips in, log-mel out, and silence after the end is not audio."""

from dataclasses import replace

import pytest
import torch

from encoders import AudioConfig, AudioEncoder
from encoders.audio import LogMel
from encoders.quantizer import QuantizerConfig
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


def test_a_picture_model_reads_the_log_mel() -> None:
    encoder = AudioEncoder(replace(SMALL, trunk="timm/test_vit", weights="none"), BOTTLENECK, 32)
    features = encoder.features(tone(440))
    assert features.tokens.shape[:2] == (1, 1 + 4 * 2)  # CLS, and 64 × 32 in patches of 16
    assert encoder(None, features=features).losses["reconstruction"].isfinite()
