"""What every encoder returns, and what every encoder is: trunk → bottleneck → decoder."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from encoders.vqvae import Bottleneck


@dataclass
class Features:
    """A trunk's output, before the bottleneck: tokens (B, T, F), mask (B, T) bool, True where a token is real."""

    tokens: Tensor
    mask: Tensor


@dataclass
class EncoderOutput:
    """One modality on its way into the backbone.

    tokens (B, T, D) enter the backbone; codes (B, T, Q) int64 are their discrete names, -1 at padding;
    mask (B, T) bool; summary (B, S) is what the trunk itself says of the whole: its prefix tokens, and the mean of the
    others; losses and metrics are named scalars; marked (B, T) bool are the tokens to which attention is drawn, if any.
    """

    tokens: Tensor
    codes: Tensor
    mask: Tensor
    summary: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    term_mask: Tensor | None = None


class Trunk(nn.Module):
    """What reads the raw input: at most `tokens` tokens of `width` features, the first `prefix` of which (CLS) stand
    for the whole."""

    width: int
    tokens: int
    prefix: int = 0


class Encoder(nn.Module):
    """A VQ-VAE of one modality. Subclasses own `trunk`, `bottleneck` and `decoder`."""

    trunk: Trunk
    bottleneck: "Bottleneck"
    frozen_trunk: bool

    def features(self, inputs: Tensor, mask: Tensor | None = None) -> Features:
        """Raw inputs of the modality -> Features of the trunk (B, T, F). The part that is cached when it is frozen."""
        raise NotImplementedError

    def forward(
        self, features: Features, target: Tensor | None = None, target_mask: Tensor | None = None
    ) -> EncoderOutput:
        """Features (B, T, F) -> EncoderOutput with tokens (B, T, D).

        With a `target` the reconstruction loss is added.
        """
        raise NotImplementedError

    def reconstruct(self, codes: Tensor) -> Tensor:
        """codes (B, T, Q) -> the modality's decoded form (pixels, log-mel frames, token logits or trunk features)."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Encoder":
        """A frozen trunk stays in evaluation mode: dropout and batch statistics must not move under a cache."""
        super().train(mode)
        if self.frozen_trunk:
            self.trunk.eval()
        return self

    def freeze_trunk_if_asked(self) -> None:
        if self.frozen_trunk:
            self.trunk.requires_grad_(False)
            self.trunk.eval()
