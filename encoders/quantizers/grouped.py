"""Product quantization: Jégou et al. 2011, Product Quantization for Nearest Neighbor Search, section II.B."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from encoders.quantizers.base import Quantized, Quantizer, QuantizerConfig, joined


class GroupedQuantizer(Quantizer):
    """Divides a vector into equal parts, each with a quantizer of its own: S^G vectors from G codebooks of S.

    Args:
        config: with `groups` of two or more; the parts share everything else in it.
        build: makes the quantizer of one part.
    """

    def __init__(self, config: QuantizerConfig, build: Callable[[QuantizerConfig], Quantizer]) -> None:
        super().__init__(config)
        part = replace(config, groups=1, width=config.width // config.groups)
        parts = nn.ModuleList([build(part) for _ in range(config.groups)])
        self.parts: Sequence[Quantizer] = parts  # type: ignore[assignment]
        self.size = self.parts[0].size
        self.depth = config.groups * self.parts[0].depth

    def quantize(self, z: Tensor, real: Tensor | None = None) -> Quantized:
        found = [part.quantize(x, real) for part, x in zip(self.parts, z.chunk(len(self.parts), -1), strict=True)]
        return joined(found, torch.cat([q.vectors for q in found], -1))

    def vectors_of(self, codes: Tensor) -> Tensor:
        of_parts = zip(self.parts, codes.chunk(len(self.parts), -1), strict=True)
        vectors = [part.vectors_of(chosen) for part, chosen in of_parts]
        return torch.cat(vectors, -1)
