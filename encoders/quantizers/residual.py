"""Residual quantization: Zeghidour et al. 2021, SoundStream (2107.03312), algorithm 1."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from encoders.quantizers.base import Quantized, Quantizer, QuantizerConfig, straight_through
from encoders.quantizers.ema import EMAQuantizer


class ResidualQuantizer(Quantizer):
    """Q moving-average quantizers, each coding what the ones before it left over; a vector is the sum of its codes."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.depth = config.quantizers
        stages = nn.ModuleList([EMAQuantizer(config) for _ in range(config.quantizers)])
        self.stages: Sequence[EMAQuantizer] = stages  # type: ignore[assignment]

    def quantize(self, z: Tensor) -> Quantized:
        residual, stages = z, []
        for stage in self.stages:
            stages.append(stage.quantize(residual))
            residual = residual - stages[-1].vectors.detach()
        losses, metrics = mean_of([s.losses for s in stages]), mean_of([s.metrics for s in stages])
        metrics["revived"] = torch.stack([s.metrics["revived"] for s in stages]).sum()
        vectors = torch.stack([s.vectors for s in stages]).sum(0)
        return Quantized(straight_through(z, vectors), torch.cat([s.codes for s in stages], -1), losses, metrics)

    def vectors_of(self, codes: Tensor) -> Tensor:
        """Also takes the codes of only the first q stages, (..., q): a coarser vector at a lower bit rate."""
        stages = zip(self.stages, codes.split(1, dim=-1), strict=False)
        return torch.stack([stage.vectors_of(code) for stage, code in stages]).sum(0)


def mean_of(terms: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Per name, the mean of scalars () over the list."""
    return {name: torch.stack([term[name].float() for term in terms]).mean() for name in terms[0]}
