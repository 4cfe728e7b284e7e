"""Residual quantization: Zeghidour et al. 2021, SoundStream (2107.03312), algorithm 1."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from encoders.quantizers.base import Quantized, Quantizer, QuantizerConfig, joined
from encoders.quantizers.ema import EMAQuantizer


class ResidualQuantizer(Quantizer):
    """Q moving-average quantizers, each of the residual of those before it; a vector is the sum of its codes."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.depth = config.quantizers
        stage = replace(config, gradient="straight_through")  # of which no gradient is taken
        stages = nn.ModuleList([EMAQuantizer(stage) for _ in range(config.quantizers)])
        self.stages: Sequence[EMAQuantizer] = stages  # type: ignore[assignment]

    def quantize(self, z: Tensor, real: Tensor | None = None) -> Quantized:
        residual = z
        found: list[Quantized] = []
        for stage in self.stages:
            quantized = stage.quantize(residual, real)
            residual = residual - quantized.vectors.detach()
            found.append(quantized)
        vectors = torch.stack([q.vectors for q in found]).sum(0)
        return joined(found, self.passed(z, vectors))

    def vectors_of(self, codes: Tensor) -> Tensor:
        """Also takes the codes of only the first q stages, (..., q): a coarser vector at a lower bit rate."""
        of_stages = zip(self.stages, codes.split(1, dim=-1), strict=False)
        vectors = [stage.vectors_of(code) for stage, code in of_stages]
        return torch.stack(vectors).sum(0)
