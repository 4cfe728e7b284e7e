"""Codebooks that follow the data by moving averages: in the plane and on the sphere.

van den Oord et al. 2017, appendix A.1 (EMA updates); Yu et al. 2021, ViT-VQGAN (l2-normalised codes; here they follow
the same moving averages and not a codebook loss, so that dead codes are handled in one place); revival of dead codes
after Dhariwal et al. 2020, Jukebox, with the statistics reset too: otherwise the next update undoes the revival.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.quantizers.base import (
    COMMITMENT,
    Quantized,
    Quantizer,
    QuantizerConfig,
    joint_counts,
    mean_square,
    usage,
)
from kernels.collectives import gather, gather_uneven, sum_over_ranks, world
from kernels.nearest_code import assign, nearest_code
from kernels.padding import host_reads

KMEANS_STEPS = 10
SEED_STEP = 0xD1342543DE82EF95 - 2**64
NUMBER_STEP = 0x9E3779B97F4A7C15 - 2**64
MIXES = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1))
"""SplitMix64's constants, as int64."""


class EMAQuantizer(Quantizer):
    """Nearest code by Euclidean distance; every training step moves each code towards the mean of what chose it.

    All statistics are float32 buffers, summed over ranks. The choice of vectors for new codes is a pure function of the
    joint batch and the `updates` buffer, so it is the same on every rank and after a resume. Nothing but the first
    batch is asked of the device: later ones move the codebook by arithmetic alone.
    """

    started = False
    """Whether the codebook is known to have met a batch; what `updates` says, without asking the device."""

    metric: Literal["euclidean", "cosine"] = "euclidean"
    revive_below = 0.1
    """A code whose average use is below this fraction of the mean code's is dead and replaced; 0 never replaces."""
    codebook: Tensor
    counts: Tensor
    sums: Tensor
    updates: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.register_buffer("codebook", self.project(torch.randn(config.num_codes, config.width)))
        self.register_buffer("counts", torch.zeros(config.num_codes))
        self.register_buffer("sums", torch.zeros(config.num_codes, config.width))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def project(self, vectors: Tensor) -> Tensor:
        """(..., C) -> (..., C): onto the space the codes live in."""
        return vectors

    def quantize(self, z: Tensor, real: Tensor | None = None) -> Quantized:
        z = self.project(z)
        fixed = z.detach() if real is None else z.detach() * real[:, None]
        if self.training:
            self._start(fixed, real)
            codes, counts, sums = assign(fixed, self.codebook, self.metric)
            if real is not None:
                # Padding adds zeros to the sums, and is taken out of the counts.
                counts = counts.scatter_add(0, codes, real.to(counts.dtype) - 1)
            vectors = self.codebook[codes]
            counts = sum_over_ranks(counts, world())
            sums = sum_over_ranks(sums, world())
            revived = self._follow(fixed, real, counts, sums)
        else:
            codes = nearest_code(fixed, self.codebook, self.metric)
            vectors = self.codebook[codes]
            counts = joint_counts(codes, self.size, real)
            revived = counts.new_zeros(())
        losses = {"commitment": COMMITMENT * mean_square(z, vectors, real)}
        metrics = {**usage(counts), "revived": revived}
        return Quantized(self.passed(z, vectors), codes[:, None], losses, metrics)

    def vectors_of(self, codes: Tensor) -> Tensor:
        return self.codebook[codes[..., 0]]

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self.started = False

    @torch.no_grad()
    def _start(self, z: Tensor, real: Tensor | None) -> None:
        """Lloyd's k-means on the first joint batch of z (N, C) that holds a vector, see `quantize` for real. Codes left
        empty count 0 and are revived next step."""
        if self.started:
            return
        if self.updates > 0:
            self.started = True
            return
        z = gather_uneven(z if real is None else z[real], world())
        if len(z) == 0:
            return
        self.codebook.copy_(self._picked(z, None, torch.arange(self.size, device=z.device)))
        for _ in range(KMEANS_STEPS):
            _, counts, sums = assign(z, self.codebook, self.metric)
            self.counts.copy_(counts)
            self.sums.copy_(sums)
            self._move_codes(counts.sum() > 0)
        self.started = True

    @torch.no_grad()
    def _follow(self, z: Tensor, real: Tensor | None, counts: Tensor, sums: Tensor) -> Tensor:
        """One moving-average step from joint counts (S,) and sums (S, C); returns () int64, the codes revived.

        A batch without vectors leaves everything as it is.
        """
        there = counts.sum() > 0
        share = (1 - self.config.decay) * there
        self.counts.lerp_(counts, share)
        self.sums.lerp_(sums, share)
        self._move_codes(there)
        dead = (self.counts < self.revive_below * self.counts.mean()) & (self.updates > 0) & there
        if not host_reads(dead) or dead.any():
            self._revive(dead, z, real)
        self.updates += there
        return dead.sum()

    def _revive(self, dead: Tensor, z: Tensor, real: Tensor | None) -> None:
        """Give the dead codes (S,) bool vectors of the joint batch z (N, C), and the mean code's statistics."""
        if real is None:
            z = gather_uneven(z, world())
        else:
            z = gather(z, world())
            real = gather(real, world())
        picked = self._picked(z, real, dead.cumsum(0) - 1)
        dead_rows = dead[:, None]
        self.codebook.copy_(torch.where(dead_rows, picked, self.codebook))
        self.counts.copy_(torch.where(dead, self.counts.mean(), self.counts))
        self.sums.copy_(torch.where(dead_rows, self.codebook * self.counts[:, None], self.sums))

    def _move_codes(self, there: Tensor) -> None:
        """Each code that ever was chosen to the mean of its vectors; none where the batch () bool has no vector."""
        known = (self.counts > 1e-6) & there
        means = self.project(self.sums / self.counts.clamp(min=1e-6)[:, None])
        self.codebook.copy_(torch.where(known[:, None], means, self.codebook))

    def _picked(self, z: Tensor, real: Tensor | None, turns: Tensor) -> Tensor:
        """Vectors drawn at random, none twice before all were taken.

        Args:
            z: (N, C), of which vectors are taken.
            real: (N,) bool, which may be taken; None for all.
            turns: (M,) int64, the number of each draw; below zero any will do.

        Returns:
            (M, C).
        """
        if real is None:
            order = scattered(torch.arange(len(z), device=z.device), self.updates).argsort()
            return z[order[turns % len(z)]]
        keys = scattered(real.cumsum(0) - 1, self.updates)
        order = keys.masked_fill(~real, torch.iinfo(keys.dtype).max).argsort()
        return z[order[turns % real.sum().clamp(min=1)]]


def scattered(numbers: Tensor, seed: Tensor) -> Tensor:
    """Pseudo-random numbers of a device's own arithmetic (Steele et al. 2014, SplitMix64).

    Args:
        numbers: (N,) int64.
        seed: () int64.

    Returns:
        (N,) int64, a pure function of number and seed, no two of them equal.
    """
    x = (seed + 1) * SEED_STEP + (numbers + 1) * NUMBER_STEP
    for shift, factor in MIXES:
        # The mask makes the shift a logical one, under which nothing is lost.
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor
    return x


class CosineQuantizer(EMAQuantizer):
    """Vectors and codes on the unit sphere, nearest by cosine: the length of a vector carries nothing."""

    metric = "cosine"

    def project(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)
