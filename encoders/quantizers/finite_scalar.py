"""Finite scalar quantization: Mentzer et al. 2023 (2309.15505), section 3 and the code of its appendix."""

import math

import torch
from torch import Tensor, nn

from encoders.quantizers.base import Quantized, Quantizer, QuantizerConfig, joint_counts, straight_through, usage


class FiniteScalarQuantizer(Quantizer):
    """Bounds each of len(levels) channels and rounds it to a level; a code is the mixed-radix number they spell.

    No codebook and no loss: nothing can die. When the width is not len(levels), a linear leads in and another out.
    """

    reach: Tensor
    offset: Tensor
    shift: Tensor
    radix: Tensor
    level_count: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        channels = len(config.levels)
        self.size = math.prod(config.levels)
        levels = torch.tensor(config.levels)
        reach = (levels - 1) * (1 + 1e-3) / 2  # a hair wider than the outermost level, so that tanh reaches it
        offset = (levels % 2 == 0) * 0.5  # an even number of levels lies around -1/2
        radix = torch.tensor([math.prod(config.levels[:i]) for i in range(channels)])
        self.register_buffer("level_count", levels, persistent=False)
        self.register_buffer("reach", reach, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("shift", (offset / reach).atanh(), persistent=False)
        self.register_buffer("radix", radix, persistent=False)
        same = config.width == channels
        self.lead_in = nn.Identity() if same else nn.Linear(config.width, channels)
        self.lead_out = nn.Identity() if same else nn.Linear(channels, config.width)

    def quantize(self, z: Tensor, real: Tensor | None = None) -> Quantized:
        bounded = torch.tanh(self.lead_in(z) + self.shift) * self.reach - self.offset
        rounded = straight_through(bounded, bounded.round())
        codes = ((rounded.detach().long() + self.level_count // 2) * self.radix).sum(-1)
        counts = joint_counts(codes, self.size, real)
        metrics = {**usage(counts), "revived": codes.new_zeros(())}
        vectors = self.lead_out(rounded / (self.level_count // 2))
        return Quantized(vectors, codes[:, None], {}, metrics)

    def vectors_of(self, codes: Tensor) -> Tensor:
        half_width = self.level_count // 2
        digits = codes // self.radix % self.level_count
        return self.lead_out((digits - half_width) / half_width)
