"""What every quantizer shares: configuration, result, and the border where padding and precision are dealt with."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from kernels.collectives import joint_mean, step_group, sum_over_ranks
from kernels.errors import UserError
from kernels.padding import count_of, real_rows
from kernels.ranges import check_ranges

COMMITMENT = 0.25
"""Weight of the commitment loss, van den Oord et al. 2017; `loss.vq` scales it with the other losses of a VQ-VAE."""


@dataclass(frozen=True)
class QuantizerConfig:
    """A discrete bottleneck."""

    kind: Literal["ema", "cosine", "residual", "fsq", "simvq"] = "ema"
    """Which quantizer: see encoders/quantizer.py."""
    num_codes: Annotated[int, "[1, inf)"] = 512
    """Codes per quantizer (fsq: the product of `levels` instead)."""
    width: Annotated[int, "[1, inf)"] = 32
    """Channels of the vectors that are quantized."""
    quantizers: Annotated[int, "[1, inf)"] = 1
    """Depth of the residual quantizer; 1 for every other kind."""
    groups: Annotated[int, "[1, inf)"] = 1
    """Equal parts of a vector, each with a quantizer of its own: codes per vector are `groups` x `quantizers`."""
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    """How the gradient passes a choice of codes (not fsq, which rounds): as it is, or turned as the vector was."""
    decay: Annotated[float, "[0, 1)"] = 0.9
    """Per-step decay of the moving averages (ema, cosine, residual); 0.99 is usual for runs of many thousand steps."""
    levels: Annotated[tuple[int, ...], "[2, inf)"] = (8, 8, 8)
    """fsq: values per channel."""

    def __post_init__(self) -> None:
        check_ranges(self, "bottleneck.quantizer")
        if self.quantizers > 1 and self.kind != "residual":
            raise UserError(f"quantizers={self.quantizers} needs kind='residual', not {self.kind!r}")
        if self.width % self.groups:
            raise UserError(f"{self.groups} groups do not divide the width {self.width}: bottleneck.quantizer.groups")
        if self.kind == "fsq" and self.gradient == "rotation":
            raise UserError("fsq rounds channel by channel, there is nothing to turn: gradient=straight_through")
        if self.kind == "fsq" and not self.levels:
            raise UserError("bottleneck.quantizer.levels is empty: fsq needs one or more channels")


@dataclass
class Quantized:
    """vectors (B, T, C), straight-through · codes (B, T, Q) int64, -1 where padded.

    losses: scalars already weighted, so that their sum is the loss. metrics: scalars of this batch, without gradient:
    perplexity and used (fraction of the codes), both means over the Q quantizers, and revived (codes replaced). In
    training the batch is the global one.
    """

    vectors: Tensor
    codes: Tensor
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]


register_dataclass(Quantized)


class Quantizer(nn.Module):
    """Maps vectors to the nearest of finitely many. A kind states `quantize` and `vectors_of` on flat vectors."""

    size: int
    """Codes per quantizer."""
    depth: int = 1
    """Quantizers Q: codes per vector."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.size = config.num_codes

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z (B, T, C) of any float dtype, mask (B, T) bool, True where real (None: everywhere).

        Quantizes in float32, also under autocast; the vectors come back in z's dtype. Padded positions give code -1 and
        vector 0, and touch neither losses, metrics nor statistics.
        """
        if z.dim() != 3 or z.shape[-1] != self.config.width:
            raise ValueError(
                f"z has shape {tuple(z.shape)}: a quantizer of width {self.config.width} "
                f"takes (B, T, {self.config.width})"
            )
        every = z.flatten(0, 1)
        rows = None if mask is None else real_rows(mask)
        with torch.autocast(z.device.type, enabled=False):
            if mask is None:
                flat = self.quantize(every.float())
            elif rows is None:
                flat = self._masked(every.float(), mask.flatten())
            else:
                flat = self._dropped(every.float(), rows)
        vectors = flat.vectors.view_as(z).to(z.dtype)
        return replace(flat, vectors=vectors, codes=flat.codes.view(*z.shape[:2], -1))

    def _dropped(self, z: Tensor, rows: Tensor) -> Quantized:
        """z (N, C), rows (n,) int64 of the real ones -> of all N vectors."""
        flat = self.quantize(z[rows])
        vectors = flat.vectors.new_zeros(z.shape).index_copy(0, rows, flat.vectors)
        codes = flat.codes.new_full((len(z), self.depth), -1).index_copy(0, rows, flat.codes)
        return replace(flat, vectors=vectors, codes=codes)

    def _masked(self, z: Tensor, real: Tensor) -> Quantized:
        """z (N, C), real (N,) bool -> of all N vectors; what padding holds is quantized too, and counts nowhere."""
        flat = self.quantize(torch.where(real[:, None], z, 0), real)
        vectors = torch.where(real[:, None], flat.vectors, 0)
        codes = torch.where(real[:, None], flat.codes, -1)
        return replace(flat, vectors=vectors, codes=codes)

    def lookup(self, codes: Tensor) -> Tensor:
        """codes (B, T, Q) int64 -> vectors (B, T, C) float32; 0 where a code is -1."""
        with torch.autocast(codes.device.type, enabled=False):
            vectors = self.vectors_of(codes.clamp(min=0))
        return vectors.masked_fill((codes < 0).any(-1, keepdim=True), 0.0)

    def quantize(self, z: Tensor, real: Tensor | None = None) -> Quantized:
        """z (N, C) float32, real (N,) bool of the vectors that count (None: all) -> vectors (N, C), codes (N, Q)."""
        raise NotImplementedError

    def vectors_of(self, codes: Tensor) -> Tensor:
        """codes (..., Q), none negative -> (..., C) float32."""
        raise NotImplementedError

    def passed(self, z: Tensor, vectors: Tensor) -> Tensor:
        """The value of `vectors`, in training with the gradient of `config.gradient`. Both (N, C)."""
        if self.training and self.config.gradient == "rotation":
            z = rotated(z, vectors)
        return straight_through(z, vectors)


def straight_through(z: Tensor, vectors: Tensor) -> Tensor:
    """The value of `vectors`, to the bit, with the gradient of z (Bengio et al. 2013). Both (N, C)."""
    return vectors.detach() + (z - z.detach())


def rotated(z: Tensor, vectors: Tensor) -> Tensor:
    """Turn and stretch z onto `vectors` by a linear map that is held fixed: Fifty et al. 2024 (2410.06424), 4.2.

    What pushes a code's vector away from its neighbours in angle then pushes z likewise, which the straight-through
    estimator does not.

    Args:
        z: (N, C).
        vectors: (N, C), of the chosen codes.

    Returns:
        (N, C), the value of `vectors` up to rounding; its gradient reaches z through the map's transpose.
    """
    a = nn.functional.normalize(z.detach(), dim=-1)
    b = nn.functional.normalize(vectors.detach(), dim=-1)
    middle = nn.functional.normalize(a + b, dim=-1)
    stretch = vectors.detach().norm(dim=-1, keepdim=True) / z.detach().norm(dim=-1, keepdim=True).clamp(min=1e-12)
    mirrored = z - 2 * middle * (middle * z).sum(-1, keepdim=True)
    return stretch * (mirrored + 2 * b * (a * z).sum(-1, keepdim=True))


def mean_square(a: Tensor, b: Tensor, real: Tensor | None = None) -> Tensor:
    """Mean of (a - b)² over (N, C) of all ranks -> (); 0 when N is 0, as when a whole batch lacks the modality.

    real: (N,) bool, the rows that count; None for all.
    """
    error = (a - b).square()
    if real is None:
        return joint_mean(error.sum(), error.numel(), step_group())
    return joint_mean((error * real[:, None]).sum(), real.sum() * a.shape[1], step_group())


def joint_counts(codes: Tensor, size: int, real: Tensor | None = None) -> Tensor:
    """codes (N,) in 0..size-1, real (N,) bool of those that count (None: all) -> (size,) int64, how often all ranks
    chose each."""
    return sum_over_ranks(count_of(codes, size, real), step_group())


def usage(counts: Tensor) -> dict[str, Tensor]:
    """counts (S,), how often each code was chosen -> perplexity in [1, S] (0 without any) and the used fraction."""
    share = counts.float() / counts.sum().clamp(min=1)
    perplexity = torch.special.entr(share).sum().exp() * (counts.sum() > 0)
    used = (counts > 0).float().mean()
    return {"perplexity": perplexity, "used": used}


def joined(found: list[Quantized], vectors: Tensor) -> Quantized:
    """What several quantizers found as the result of one.

    Args:
        found: of each its codes (N, Q_i), losses and metrics, of which means are taken; codes revived are added up.
        vectors: (N, C), what they make together.

    Returns:
        Quantized with codes (N, ΣQ_i).
    """
    losses = mean_of([quantized.losses for quantized in found])
    metrics = mean_of([quantized.metrics for quantized in found])
    metrics["revived"] = torch.stack([quantized.metrics["revived"] for quantized in found]).sum()
    codes = torch.cat([quantized.codes for quantized in found], -1)
    return Quantized(vectors, codes, losses, metrics)


def mean_of(terms: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Per name, the mean of scalars () over the list."""
    means = {}
    for name in terms[0]:
        values = [term[name].float() for term in terms]
        means[name] = torch.stack(values).mean()
    return means
