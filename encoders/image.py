"""Image VQ-VAE: pixels -> trunk -> codes -> pixels, or trunk features when the trunk is pretrained."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from encoders.base import Features
from encoders.clip_towers import OpenClipImageTrunk
from encoders.joined_trunk import JoinedTrunk, build_joined_trunk
from encoders.trunks import ConvTrunk, TimmTrunk, square_timm_trunk
from encoders.vqvae import Bottleneck, BottleneckConfig, Encoder, FeatureDecoder, first_rows
from kernels.collectives import joint_mean, step_group
from kernels.errors import UserError
from kernels.ranges import check_ranges


@dataclass(frozen=True)
class ImageConfig:
    """The image encoder."""

    trunk: str = "scratch"
    """scratch | timm/<name> | open_clip/<name>[:tag] | timm/<a>[@pixels]+timm/<b>[@pixels], joined place by place."""
    weights: str | None = None
    """Local file for the trunk (safetensors), of joined trunks one each, joined by +; without it, a pretrained trunk is
    fetched by its library."""
    frozen: bool = False
    """A frozen trunk is not trained and its features are cached on disk."""
    size: Annotated[int, "[1, inf)"] = 64
    """Pixels per side."""
    fit: Literal["crop", "squash"] = "squash"
    """How an image becomes a square: cut the centre out, or change the aspect and keep everything."""
    pool: Annotated[int, "[1, inf)"] = 1
    """Average pooling of a timm trunk's patch grid, or of joined trunks' common one, per side."""
    width: Annotated[int, "[2, inf)"] = 96
    """Width of the scratch trunk."""
    stride: Annotated[int, "[8, 32]"] = 8
    """Pixels per token and side of the scratch trunk: 8, 16 or 32."""
    depth: Annotated[int, "[0, inf)"] = 1
    """Blocks of the scratch trunk's late stage."""

    def __post_init__(self) -> None:
        check_ranges(self, "image")


ImageTrunk = ConvTrunk | TimmTrunk | OpenClipImageTrunk | JoinedTrunk


class ImageEncoder(Encoder):
    """images (B, 3, H, W) uint8 -> EncoderOutput with tokens (B, T, D).

    Args:
        config: trunk and size.
        bottleneck: quantizer and bypass.
        width: D, the backbone's width.

    Raises:
        ValueError: there is no such trunk, or its weights do not fit.
    """

    trunk: ImageTrunk
    mean: Tensor
    std: Tensor

    def __init__(self, config: ImageConfig, bottleneck: BottleneckConfig, width: int) -> None:
        super().__init__()
        self.size = config.size
        self.frozen_trunk = config.frozen
        self.decoded_rows = bottleneck.reconstruct
        self.trunk = build_image_trunk(config)
        self.register_buffer("mean", torch.tensor(self.trunk.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.trunk.std).view(3, 1, 1), persistent=False)
        self.bottleneck = Bottleneck(bottleneck, self.trunk.width, width, self.trunk.tokens, self.trunk.prefix)
        self.decoder: nn.Module | None = None
        if bottleneck.mode != "continuous":
            code_width = bottleneck.quantizer.width
            if isinstance(self.trunk, ConvTrunk):
                self.decoder = PixelDecoder(code_width, self.trunk.grid, config.stride)
            else:
                self.decoder = FeatureDecoder(code_width, self.trunk.width)
        self.freeze_trunk_if_asked()

    def normalise(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 in 0..255 -> float, zero mean and unit variance by the trunk's own convention."""
        return (image.float() / 255 - self.mean) / self.std

    def features(self, inputs: Tensor, mask: Tensor | None = None) -> Features:
        """Images -> features of the trunk.

        Args:
            inputs: (B, 3, size, size) uint8.
            mask: unused, an image has no padding.

        Returns:
            Features (B, T, F).

        Raises:
            ValueError: the images are of another size.
        """
        if inputs.shape[-2:] != (self.size, self.size):
            raise ValueError(f"images of {tuple(inputs.shape[-2:])} pixels, but image.size is {self.size}")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_trunk):
            return self.trunk(self.normalise(inputs))

    def reconstruction(self, vectors: Tensor, features: Features, target: Tensor, mask: Tensor | None) -> Tensor:
        """The mean squared error of normalised pixels, in training of the first `decoded_rows` images of all ranks.

        Args:
            vectors: code vectors (B, T, C).
            features: of the trunk, for their mask.
            target: images (B, 3, H, W) uint8.
            mask: unused, an image has no padding.

        Returns:
            ().
        """
        assert self.decoder is not None
        rows, mask = first_rows(self.decoded_rows if self.training else None, features.mask)
        decoded = self.decoder(vectors[rows]).float()
        pixels = self.normalise(target[rows])
        error = (decoded - pixels).square().flatten(1).mean(1)
        real = mask.any(1)
        return joint_mean((error * real).sum(), real.sum(), step_group())

    def reconstruct(self, codes: Tensor) -> Tensor:
        """codes (B, T, Q) -> pixels (B, 3, H, W) in 0..1, or trunk features (B, T, F) when the trunk is pretrained."""
        if self.decoder is None:
            raise ValueError("a continuous bottleneck has no decoder: bottleneck.mode=both or vq has one")
        vectors = self.bottleneck.lookup(codes)
        decoded = self.decoder(vectors)
        if isinstance(self.decoder, FeatureDecoder):
            return decoded
        return (decoded * self.std + self.mean).clamp(0, 1)


class PixelDecoder(nn.Module):
    """Code vectors (B, g·g, C) -> pixels (B, 3, s·g, s·g): one 3×3 mix, then pixel shuffles (Shi et al. 2016).

    Args:
        code_width: C, of a code vector.
        grid: g, tokens per side.
        stride: s, pixels per token and side, a power of two.
        width: channels after the first convolution; every doubling of the resolution halves them.
    """

    def __init__(self, code_width: int, grid: int, stride: int, width: int = 96) -> None:
        super().__init__()
        self.grid = grid
        layers: list[nn.Module] = [nn.Conv2d(code_width, width, 3, padding=1), nn.GELU()]
        for _ in range(stride.bit_length() - 2):
            narrower = max(width // 2, 24)
            layers += [nn.Conv2d(width, 4 * narrower, 3, padding=1), nn.PixelShuffle(2), nn.GELU()]
            width = narrower
        layers += [nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, g·g, C) -> (B, 3, s·g, s·g)."""
        x = vectors.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return self.layers(x.contiguous(memory_format=torch.channels_last))


def build_image_trunk(config: ImageConfig) -> ImageTrunk:
    """Build the trunk that the settings name. Raises ValueError where there is no such trunk."""
    library, _, name = config.trunk.partition("/")
    if "+" in config.trunk:
        return build_joined_trunk(config.trunk, config.size, config.weights, config.pool)
    if library == "timm":
        return square_timm_trunk(name, config.size, config.weights, config.pool)
    if library == "open_clip":
        tower = OpenClipImageTrunk(name, config.weights)
        if tower.size != (config.size, config.size):
            raise UserError(f"image.size={config.size}, but {config.trunk} reads {tower.size[0]} pixels per side")
        return tower
    if config.trunk == "scratch":
        return ConvTrunk(config.size, config.width, config.depth, config.stride)
    raise UserError(f"image.trunk={config.trunk!r}: use scratch, timm/<name>, open_clip/<name> or timm/<a>+timm/<b>")
