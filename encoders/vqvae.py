"""A VQ-VAE of one modality: trunk → bottleneck → decoder, and the bottleneck, a quantizer with a gated bypass.

The VQ-VAE is van den Oord et al. 2017. The bypass is ours: it makes the cost of discretisation a measured ablation
(`mode`: both | vq | continuous).
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from encoders.base import EncoderOutput, Features, Trunk
from encoders.batch_norm import counted_rows, join_batch_norms
from encoders.quantizer import Quantizer, QuantizerConfig, build_quantizer
from kernels.collectives import joint_mean, rank_and_size, step_group
from kernels.errors import UserError
from kernels.ranges import check_ranges


@dataclass(frozen=True)
class BottleneckConfig:
    """What lies between trunk and backbone."""

    mode: Literal["both", "vq", "continuous"] = "both"
    """both: codes plus a gated bypass; vq: codes alone; continuous: no codes at all."""
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    reconstruct: Annotated[int, "[1, inf)"] = 8
    """Samples per step whose raw input is decoded in training: a sample of the batch estimates the same loss. Of
    captions eight times as many tokens."""

    def __post_init__(self) -> None:
        check_ranges(self, "bottleneck")


GATE = 2.0
"""The bypass's gate at the start, as a logit: 88 % of it passes."""


class Bottleneck(nn.Module):
    """Features (B, T, F) -> tokens (B, T, D) = up(quantize(down(x))) + sigmoid(gate) · bypass(x) + position.

    A decoder sees the quantized code vectors (B, T, C) alone: nothing leaks around the codes.

    Args:
        config: which of the two paths there are, and the quantizer.
        features: F, the trunk's width.
        width: D, the backbone's width.
        max_tokens: the largest T.
        prefix: P, how many of the first tokens (CLS) stand for the whole.
    """

    def __init__(self, config: BottleneckConfig, features: int, width: int, max_tokens: int, prefix: int = 0) -> None:
        super().__init__()
        self.mode = config.mode
        self.prefix = prefix
        of_codes = config.mode == "vq"
        self.held_width = config.quantizer.width if of_codes else features
        self.summary_width = (prefix + 1) * self.held_width
        self.norm = nn.LayerNorm(features)
        self.position = nn.Parameter(torch.randn(max_tokens, width) * 0.02)
        self.quantizer: Quantizer | None = None
        self.down: Any = None
        self.up: Any = None
        self.bypass: Any = None
        if config.mode != "continuous":
            code_width = config.quantizer.width
            self.down = nn.Linear(features, code_width)
            self.quantizer = build_quantizer(config.quantizer)
            self.up = nn.Linear(code_width, width)
        if config.mode != "vq":
            self.bypass = nn.Linear(features, width)
            self.gate = nn.Parameter(torch.full((width,), GATE))

    def forward(self, features: Features, coded: Tensor | None = None) -> tuple[EncoderOutput, Tensor | None]:
        """Quantize a trunk's features, and add what goes around the codes.

        Args:
            features: tokens (B, T, F) and mask (B, T).
            coded: (B,) bool, the rows whose tokens show their codes, others have the bypass alone; None for all.

        Returns:
            EncoderOutput with tokens (B, T, D), codes (B, T, Q) and summary (B, (P + 1)·F), of codes alone
            (B, (P + 1)·C); code vectors (B, T, C), or None of a continuous bottleneck.

        Raises:
            ValueError: T is larger than max_tokens, or `coded` is given and there is no bypass.
        """
        x = self.norm(features.tokens)
        mask = features.mask
        if x.shape[1] > len(self.position):
            raise ValueError(
                f"{x.shape[1]} tokens, but the encoder was built for at most {len(self.position)}: raise its max_tokens"
            )
        # len(x) would fix the batch of an exported graph.
        tokens = self.position[: x.shape[1]].expand(x.shape[0], -1, -1)
        codes = x.new_full((*x.shape[:2], 1), -1, dtype=torch.long)
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        vectors = None
        held = x
        if self.quantizer is not None:
            quantized = self.quantizer(self.down(x), mask)
            vectors = quantized.vectors
            codes = quantized.codes
            losses.update(quantized.losses)
            metrics.update(quantized.metrics)
            tokens = tokens + self.shown(self.up(vectors), coded)
            if self.bypass is None:
                held = vectors
        if self.bypass is not None:
            gate = torch.sigmoid(self.gate)
            tokens = tokens + gate * self.bypass(x)
            metrics["bypass_gate"] = gate.detach().mean()
        summary = self.summarise(held, mask)
        output = EncoderOutput(tokens, codes, mask, summary, losses, metrics, features=Features(held, mask))
        return output, vectors

    def shown(self, x: Tensor, coded: Tensor | None) -> Tensor:
        """What the codes add to the tokens, x (B, T, D): nothing in the rows that are not coded (B,), see `forward`."""
        if coded is None:
            return x
        if self.bypass is None:
            raise UserError("tokens without codes need a bypass: bottleneck.mode=both, not vq")
        return torch.where(coded[:, None, None], x, 0)

    def summarise(self, x: Tensor, mask: Tensor) -> Tensor:
        """The P prefix tokens beside the mean of the other real ones.

        Args:
            x: normed features (B, T, F), or code vectors (B, T, C).
            mask: (B, T) bool, True where a token is real.

        Returns:
            (B, (P + 1)·F), or (B, (P + 1)·C).
        """
        real = mask[:, self.prefix :, None]
        count = real.sum(1).clamp(min=1)
        mean = (x[:, self.prefix :] * real).sum(1) / count
        prefix = x[:, : self.prefix].flatten(1)
        return torch.cat([prefix, mean], 1)

    def summary_alone(self, features: Features) -> EncoderOutput:
        """What `forward` says of the whole, at the price of no token.

        Args:
            features: tokens (B, T, F) and mask (B, T).

        Returns:
            EncoderOutput with summary (B, (P + 1)·F) and features (B, T, F), without tokens and losses.

        Raises:
            ValueError: the summary is of codes.
        """
        if self.bypass is None:
            raise UserError("the summary of a bottleneck of codes alone is of its tokens: bottleneck.mode=both, not vq")
        tokens = self.position.new_zeros(len(features.tokens), 0, self.position.shape[1])
        codes = torch.full((*tokens.shape[:2], 1), -1, device=tokens.device)
        # Projections centre and scale each feature: the norm's own scale and offset would learn from rounding alone,
        # which AdamW makes steps of full size.
        scale = self.norm.weight.detach()
        offset = self.norm.bias.detach()
        x = nn.functional.layer_norm(features.tokens, self.norm.normalized_shape, scale, offset, self.norm.eps)
        summary = self.summarise(x, features.mask)
        return EncoderOutput(tokens, codes, features.mask[:, :0], summary, features=Features(x, features.mask))

    def of_codes(self, codes: Tensor) -> EncoderOutput:
        """What `forward` makes of features with these codes, the features being gone.

        Args:
            codes: (B, T, Q) int64, -1 at padding.

        Returns:
            EncoderOutput without losses.

        Raises:
            ValueError: the bottleneck has a bypass, so that codes are not all there was.
        """
        if self.bypass is not None:
            raise UserError("codes are not all that this model read: bottleneck.mode=vq is trained on codes alone")
        vectors = self.lookup(codes)
        mask = (codes >= 0).all(-1)
        tokens = self.position[: codes.shape[1]] + self.up(vectors)
        return EncoderOutput(tokens, codes, mask, self.summarise(vectors, mask), features=Features(vectors, mask))

    def lookup(self, codes: Tensor) -> Tensor:
        """codes (B, T, Q) -> code vectors (B, T, C). Raises ValueError of a continuous bottleneck."""
        if self.quantizer is None:
            raise ValueError(
                "this bottleneck is continuous: it has no codes to look up (bottleneck.mode=both or vq has)"
            )
        return self.quantizer.lookup(codes)


class Encoder(nn.Module):
    """A VQ-VAE of one modality. Subclasses own `trunk`, `bottleneck` and `decoder`, and say how features and the
    reconstruction loss are made."""

    trunk: Trunk
    bottleneck: Bottleneck
    decoder: nn.Module | None
    frozen_trunk: bool
    reads_vocabulary = False
    """Whether the constructor takes the vocabulary (V,) of the training captions after the backbone's width."""

    def forward(
        self,
        inputs: Tensor | None,
        mask: Tensor | None = None,
        features: Features | None = None,
        reconstruct: bool = True,
        present: Tensor | None = None,
        draws: torch.Generator | None = None,
        coded: Tensor | None = None,
        tokens: bool = True,
    ) -> EncoderOutput:
        """Encode one modality of a batch.

        Losses are means over the global batch in training: sums over all ranks, divided by their counts.

        Args:
            inputs: raw inputs (B, …); None where `features` are given.
            mask: (B, …) bool, True where an input is real; None where all are.
            features: cached features (B, T, F), with which the trunk does not run.
            reconstruct: whether the losses include decoding the raw inputs, if they are given.
            present: (B,) bool; no token of the other rows is real. None where all are.
            draws: decides which positions are decoded, see `decoded`.
            coded: (B,) bool, the rows whose tokens show their codes; None for all.
            tokens: whether there are tokens, codes and losses; without, the trunk's summary is all there is.

        Returns:
            EncoderOutput with tokens (B, T, D) and losses by name, `reconstruction` among them.

        Raises:
            ValueError: neither inputs nor features are given, or `tokens` is not set and the summary is of codes.
        """
        if features is None:
            if inputs is None:
                raise ValueError("an encoder needs raw inputs or the cached features of its trunk")
            with counted_rows(self.trunk, present):
                features = self.features(inputs, mask)
        if present is not None:
            features = replace(features, mask=features.mask & present[:, None])
            mask = None if mask is None else mask & present[:, None]
        if not tokens:
            return self.bottleneck.summary_alone(features)
        output, vectors = self.bottleneck(features, coded)
        if vectors is not None:
            read = self.decoded(mask, draws)
            if isinstance(self.decoder, FeatureDecoder):
                output.losses["reconstruction"] = feature_reconstruction(self.decoder(vectors), features)
            elif reconstruct and inputs is not None and self.decoder is not None:
                output.losses["reconstruction"] = self.reconstruction(vectors, features, inputs, read)
        return output

    def features(self, inputs: Tensor, mask: Tensor | None = None) -> Features:
        """Raw inputs of the modality -> Features of the trunk (B, T, F): the part that is cached when it is frozen."""
        raise NotImplementedError

    def decoded(self, mask: Tensor | None, draws: torch.Generator | None) -> Tensor | None:
        """Which of the real inputs the reconstruction loss reads; all of them unless a subclass draws some.

        Args:
            mask: (B, …) bool, True where an input is real; None where all are.
            draws: on the CPU, in the same state on every rank; None draws from torch's own.

        Returns:
            the mask, or a smaller one.
        """
        return mask

    def reconstruction(self, vectors: Tensor, features: Features, target: Tensor, mask: Tensor | None) -> Tensor:
        """The loss of decoding raw inputs; not called of a FeatureDecoder, which reconstructs the trunk's output.

        Args:
            vectors: code vectors (B, T, C).
            features: of the trunk, for their mask.
            target: raw inputs (B, …).
            mask: of the raw inputs, as `decoded` returns it.

        Returns:
            ().
        """
        raise NotImplementedError

    def reconstruct(self, codes: Tensor) -> Tensor:
        """codes (B, T, Q) -> the modality's decoded form (pixels, log-mel frames, token logits or trunk features)."""
        raise NotImplementedError

    @property
    def decodes_features(self) -> bool:
        """Whether a pretrained trunk's features are what is reconstructed, and not pixels, log-mel frames or tokens."""
        return isinstance(self.decoder, FeatureDecoder)

    def train(self, mode: bool = True) -> "Encoder":
        """A frozen trunk stays in evaluation mode: dropout and batch statistics must not move under a cache."""
        super().train(mode)
        if self.frozen_trunk:
            self.trunk.eval()
        return self

    def freeze_trunk_if_asked(self) -> None:
        """Freeze the trunk where the settings ask for it; every constructor ends with this call.

        The batch norms of one that trains are made to see the global batch.
        """
        if self.frozen_trunk:
            self.trunk.requires_grad_(False)
            self.trunk.eval()
        else:
            join_batch_norms(self.trunk)


class FeatureDecoder(nn.Module):
    """Code vectors (B, T, C) -> trunk features (B, T, F): the decoder of a pretrained trunk.

    Args:
        code_width: C, of a code vector.
        features: F, the trunk's width.
    """

    def __init__(self, code_width: int, features: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(code_width, features), nn.GELU(), nn.Linear(features, features))

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, F)."""
        return self.net(vectors)


def feature_reconstruction(decoded: Tensor, features: Features) -> Tensor:
    """Mean squared error to layer-normed features over real tokens.

    The features are normalised: otherwise the few largest channels of a frozen trunk would dominate the loss. They are
    a target, without gradient: a trunk that trains would learn features that are easy to decode.

    Args:
        decoded: (B, T, F).
        features: tokens (B, T, F) and mask (B, T).

    Returns:
        ().
    """
    tokens = features.tokens.detach().float()
    target = nn.functional.layer_norm(tokens, tokens.shape[-1:])
    error = (decoded.float() - target).square().mean(-1)
    return joint_mean((error * features.mask).sum(), features.mask.sum(), step_group())


def first_rows(count: int | None, mask: Tensor) -> tuple[slice, Tensor]:
    """Of the first `count` rows of the global batch those of this rank.

    Args:
        count: how many rows of all ranks are meant; None for all.
        mask: (B, T) bool of this rank's tokens; B is the same on every rank.

    Returns:
        the rows, and their mask. A rank that has none of them takes one that does not count: not every transform takes
        an empty batch.
    """
    if count is None:
        return slice(None), mask
    rank, _ = rank_and_size(step_group())
    own = min(max(count - rank * len(mask), 0), len(mask))
    rows = slice(max(own, 1))
    return rows, mask[rows] & (own > 0)
