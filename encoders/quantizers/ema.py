"""Codebooks that follow the data by moving averages: in the plane and on the sphere.

van den Oord et al. 2017, appendix A.1 (EMA updates); Yu et al. 2021, ViT-VQGAN (l2-normalised codes; here they follow
the same moving averages and not a codebook loss, so that dead codes are handled in one place); revival of dead codes
after Dhariwal et al. 2020, Jukebox, with the statistics reset too: otherwise the next update undoes the revival.
"""

import math
from typing import Literal

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
    straight_through,
    usage,
)
from kernels.collectives import gather_uneven, sum_over_ranks, world
from kernels.nearest_code import assign, nearest_code

KMEANS_STEPS = 10


class EMAQuantizer(Quantizer):
    """Nearest code by Euclidean distance; every training step moves each code towards the mean of what chose it.

    All statistics are float32 buffers, summed over ranks. The choice of vectors for new codes is a pure function of the
    joint batch and the `updates` buffer, so it is the same on every rank and after a resume.
    """

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

    def quantize(self, z: Tensor) -> Quantized:
        z = self.project(z)
        fixed = z.detach()
        if self.training:
            if self.updates == 0:
                self._start_from(fixed)
            codes, counts, sums = assign(fixed, self.codebook, self.metric)
            vectors = self.codebook[codes]
            counts = sum_over_ranks(counts, world())
            sums = sum_over_ranks(sums, world())
            revived = self._follow(fixed, counts, sums)
        else:
            codes = nearest_code(fixed, self.codebook, self.metric)
            vectors = self.codebook[codes]
            counts = joint_counts(codes, self.size)
            revived = counts.new_zeros(())
        losses = {"commitment": COMMITMENT * mean_square(z, vectors)}
        metrics = {**usage(counts), "revived": revived}
        return Quantized(straight_through(z, vectors), codes[:, None], losses, metrics)

    def vectors_of(self, codes: Tensor) -> Tensor:
        return self.codebook[codes[..., 0]]

    @torch.no_grad()
    def _start_from(self, z: Tensor) -> None:
        """Lloyd's k-means on the first joint batch of z (N, C). Codes left empty count 0 and are revived next step."""
        z = gather_uneven(z, world())
        if len(z) == 0:
            return
        self.codebook.copy_(self._pick(z, self.size))
        for _ in range(KMEANS_STEPS):
            _, counts, sums = assign(z, self.codebook, self.metric)
            self.counts.copy_(counts)
            self.sums.copy_(sums)
            self._move_codes()

    @torch.no_grad()
    def _follow(self, z: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
        """One moving-average step from joint counts (S,) and sums (S, C); returns () int64, the codes revived."""
        if counts.sum() == 0:
            return counts.new_zeros((), dtype=torch.int64)
        self.counts.lerp_(counts, 1 - self.config.decay)
        self.sums.lerp_(sums, 1 - self.config.decay)
        self._move_codes()
        dead = (self.counts < self.revive_below * self.counts.mean()) & (self.updates > 0)
        revived = dead.sum()
        if revived > 0:
            self.codebook[dead] = self._pick(gather_uneven(z, world()), int(revived))
            self.counts[dead] = self.counts.mean()
            self.sums[dead] = self.codebook[dead] * self.counts[dead, None]
        self.updates += 1
        return revived

    def _move_codes(self) -> None:
        """Each code that ever was chosen to the mean of its vectors."""
        known = self.counts > 1e-6
        means = self.project(self.sums / self.counts.clamp(min=1e-6)[:, None])
        self.codebook.copy_(torch.where(known[:, None], means, self.codebook))

    def _pick(self, z: Tensor, number: int) -> Tensor:
        """(number, C) rows of z (N, C) at random, none twice before all were taken."""
        generator = torch.Generator().manual_seed(int(self.updates))
        rounds = math.ceil(number / len(z))
        order = torch.cat([torch.randperm(len(z), generator=generator) for _ in range(rounds)])
        return z[order[:number].to(z.device)]


class CosineQuantizer(EMAQuantizer):
    """Vectors and codes on the unit sphere, nearest by cosine: the length of a vector carries nothing."""

    metric = "cosine"

    def project(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)
