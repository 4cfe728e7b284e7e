"""What every encoder takes and returns. A leaf: it imports no other file of this package."""

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.utils._pytree import register_dataclass


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
    others; losses and metrics are named scalars; term_mask (B, T) bool are the tokens of terms, if any; features are
    what all of it was made of, the trunk's (of codes alone their vectors), normed: (B, T, F).
    """

    tokens: Tensor
    codes: Tensor
    mask: Tensor
    summary: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    term_mask: Tensor | None = None
    features: Features | None = None


for result in (Features, EncoderOutput):
    register_dataclass(result)


class Trunk(nn.Module):
    """What reads the raw input: at most `tokens` tokens of `width` features, the first `prefix` of which (CLS) stand
    for the whole."""

    width: int
    tokens: int
    prefix: int = 0
