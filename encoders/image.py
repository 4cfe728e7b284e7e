"""Image VQ-VAE: pixels -> trunk -> codes -> pixels, or trunk features when the trunk is pretrained."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from encoders.base import Encoder, EncoderOutput, Features
from encoders.joined_trunk import JoinedTrunk, build_joined_trunk
from encoders.trunks import ConvTrunk, OpenClipImageTrunk, TimmTrunk
from encoders.vqvae import Bottleneck, BottleneckConfig, FeatureDecoder, feature_reconstruction


@dataclass(frozen=True)
class ImageConfig:
    """The image encoder."""

    trunk: str = "scratch"
    """scratch | timm/<name> | open_clip/<name>[:tag] | timm/<a>[@pixels]+timm/<b>[@pixels], joined place by place."""
    weights: str | None = None
    """Local file for the trunk (safetensors), of joined trunks one each, joined by +; without it, a pretrained trunk is
    fetched by its library."""
    encoder_weights: str | None = None
    """model.safetensors of a `train_vqvae` run with the same settings, to start from."""
    frozen: bool = False
    """A frozen trunk is not trained and its features are cached on disk."""
    learning_rate_factor: float = 1.0
    """Multiplies the learning rate of the trunk."""
    size: int = 64
    """Pixels per side."""
    pool: int = 1
    """Average pooling of a timm trunk's patch grid, or of joined trunks' common one, per side."""
    width: int = 96
    """Width of the scratch trunk."""
    stride: int = 8
    """Pixels per token and side of the scratch trunk: 8, 16 or 32."""
    depth: int = 1
    """Blocks of the scratch trunk's late stage."""
    reconstruct_images: int = 32
    """Images per step whose pixels are decoded in training: a sample of the batch estimates the same loss."""
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)


ImageTrunk = ConvTrunk | TimmTrunk | OpenClipImageTrunk | JoinedTrunk


class ImageEncoder(Encoder):
    """images (B, 3, H, W) uint8 -> EncoderOutput with tokens (B, T, D)."""

    trunk: ImageTrunk
    mean: Tensor
    std: Tensor

    def __init__(self, config: ImageConfig, width: int) -> None:
        super().__init__()
        self.size, self.frozen_trunk, self.reconstruct_images = config.size, config.frozen, config.reconstruct_images
        self.trunk = build_image_trunk(config)
        self.register_buffer("mean", torch.tensor(self.trunk.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.trunk.std).view(3, 1, 1), persistent=False)
        self.bottleneck = Bottleneck(config.bottleneck, self.trunk.width, width, self.trunk.tokens, self.trunk.prefix)
        self.decoder: nn.Module | None = None
        if config.bottleneck.mode != "continuous":
            code_width = config.bottleneck.quantizer.width
            self.decoder = (
                PixelDecoder(code_width, self.trunk.grid, config.stride)
                if isinstance(self.trunk, ConvTrunk)
                else FeatureDecoder(code_width, self.trunk.width)
            )
        self.freeze_trunk_if_asked()

    def normalise(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 in 0..255 -> float, zero mean and unit variance by the trunk's own convention."""
        return (image.float() / 255 - self.mean) / self.std

    def features(self, inputs: Tensor, mask: Tensor | None = None) -> Features:
        if inputs.shape[-2:] != (self.size, self.size):
            raise ValueError(f"images of {tuple(inputs.shape[-2:])} pixels, but image.size is {self.size}")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_trunk):
            return self.trunk(self.normalise(inputs))

    def forward(
        self, features: Features, target: Tensor | None = None, target_mask: Tensor | None = None
    ) -> EncoderOutput:
        output, vectors = self.bottleneck(features)
        if isinstance(self.decoder, FeatureDecoder):
            output.losses["reconstruction"] = feature_reconstruction(self.decoder(vectors), features)
        elif self.decoder is not None and target is not None:
            rows = slice(self.reconstruct_images if self.training else None)
            output.losses["reconstruction"] = nn.functional.mse_loss(
                self.decoder(vectors[rows]).float(), self.normalise(target[rows])
            )
        return output

    def reconstruct(self, codes: Tensor) -> Tensor:
        """codes (B, T, Q) -> pixels (B, 3, H, W) in 0..1, or trunk features (B, T, F) when the trunk is pretrained."""
        if self.decoder is None:
            raise ValueError("a continuous bottleneck has no decoder: image.bottleneck.mode=both or vq has one")
        decoded = self.decoder(self.bottleneck.lookup(codes))
        return decoded if isinstance(self.decoder, FeatureDecoder) else (decoded * self.std + self.mean).clamp(0, 1)


class PixelDecoder(nn.Module):
    """Code vectors (B, g·g, C) -> pixels (B, 3, s·g, s·g) at stride s:
    one 3×3 mix, then doublings (Shi et al. 2016)."""

    def __init__(self, code_width: int, grid: int, stride: int, width: int = 96) -> None:
        super().__init__()
        self.grid = grid
        layers: list[nn.Module] = [nn.Conv2d(code_width, width, 3, padding=1), nn.GELU()]
        for _ in range(stride.bit_length() - 2):
            narrower = max(width // 2, 24)
            layers += [nn.Conv2d(width, 4 * narrower, 3, padding=1), nn.PixelShuffle(2), nn.GELU()]
            width = narrower
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, vectors: Tensor) -> Tensor:
        x = vectors.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return self.layers(x.contiguous(memory_format=torch.channels_last))


def build_image_trunk(config: ImageConfig) -> ImageTrunk:
    library, _, name = config.trunk.partition("/")
    if "+" in config.trunk:
        return build_joined_trunk(config.trunk, config.size, config.weights, config.pool)
    if library == "timm":
        return TimmTrunk(name, (config.size, config.size), config.weights, config.pool)
    if library == "open_clip":
        return OpenClipImageTrunk(name, config.weights)
    if config.trunk == "scratch":
        return ConvTrunk(config.size, config.width, config.depth, config.stride)
    raise ValueError(f"image.trunk={config.trunk!r}: use scratch, timm/<name>, open_clip/<name> or timm/<a>+timm/<b>")
