"""The image encoder: pixels in and out."""

from dataclasses import replace

import pytest
import torch

from encoders import ImageConfig, ImageEncoder
from encoders.quantizer import QuantizerConfig
from encoders.vqvae import BottleneckConfig

BOTTLENECK = BottleneckConfig(quantizer=QuantizerConfig(num_codes=16, width=8))
SMALL = ImageConfig(size=32, width=16, depth=1)


def pictures(rows: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("size", "stride"), [(32, 8), (32, 16), (64, 32), (48, 16)])
def test_tokens_and_pixels_follow_size_and_stride(size: int, stride: int) -> None:
    encoder = ImageEncoder(replace(SMALL, size=size, stride=stride), BOTTLENECK, 32)
    x = pictures(2, size)
    out = encoder(x)
    assert out.tokens.shape == (2, (size // stride) ** 2, 32)
    pixels = encoder.reconstruct(out.codes)
    assert pixels.shape == (2, 3, size, size) and pixels.min() >= 0 and pixels.max() <= 1


def test_reconstruction_improves_when_it_is_trained() -> None:
    torch.manual_seed(0)
    encoder, x = ImageEncoder(SMALL, BOTTLENECK, 32), pictures(4)[:, :, :1, :1].expand(4, 3, 32, 32)
    optimizer, found = torch.optim.Adam(encoder.parameters(), 3e-3), []
    for _ in range(30):
        out = encoder(x)
        optimizer.zero_grad()
        sum(out.losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        found.append(out.losses["reconstruction"].item())
    assert found[-1] < 0.5 * found[0]


def test_in_training_a_sample_of_the_batch_is_decoded_and_in_evaluation_all_of_it() -> None:
    encoder, x = ImageEncoder(SMALL, replace(BOTTLENECK, reconstruct=2), 32), pictures(4)
    encoder(x)  # the codebook has seen data
    encoder.eval()
    whole = encoder(x).losses["reconstruction"]
    halves = [encoder(p).losses["reconstruction"] for p in (x[:2], x[2:])]
    torch.testing.assert_close(whole, torch.stack(halves).mean())
    assert not torch.allclose(whole, halves[0])


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(16, 16\) pixels, but image\.size is 32"):
        ImageEncoder(SMALL, BOTTLENECK, 32).features(pictures(1, 16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"trunk": "torch/resnet"}, "use scratch, timm/<name>, open_clip/<name>"), ({"size": 30}, "must be a multiple")],
)
def test_settings_that_cannot_be_built_say_so(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageEncoder(replace(SMALL, **changes), BOTTLENECK, 32)


def test_pixels_are_normalised_by_the_trunk() -> None:
    encoder = ImageEncoder(SMALL, BOTTLENECK, 32)
    grey = encoder.normalise(torch.full((1, 3, 32, 32), 127, dtype=torch.uint8))
    assert grey.abs().max() < 0.02
