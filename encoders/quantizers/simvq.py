"""SimVQ: Zhu et al. 2024, Addressing Representation Collapse in VQ Models with One Linear Layer (2411.02038)."""

import torch
from torch import Tensor, nn

from encoders.quantizers.base import (
    COMMITMENT,
    Quantized,
    Quantizer,
    QuantizerConfig,
    joint_counts,
    mean_square,
    usage,
)
from kernels.nearest_code import nearest_code


class SimQuantizer(Quantizer):
    """A frozen random codebook seen through one learned linear: every step moves all codes, so none is left behind.

    The codebook has unit variance, and not the authors' 1/C: the codes then start as far apart as what a linear makes
    of layer-normed features, which a short run needs.
    """

    basis: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.register_buffer("basis", torch.randn(config.num_codes, config.width))
        self.linear = nn.Linear(config.width, config.width)

    def quantize(self, z: Tensor, real: Tensor | None = None) -> Quantized:
        codebook = self.linear(self.basis)
        codes = nearest_code(z.detach(), codebook.detach(), "euclidean")
        vectors = codebook[codes]
        losses = {
            "codebook": mean_square(z.detach(), vectors, real),
            "commitment": COMMITMENT * mean_square(z, vectors.detach(), real),
        }
        counts = joint_counts(codes, self.size, real)
        metrics = {**usage(counts), "revived": codes.new_zeros(())}
        return Quantized(self.passed(z, vectors), codes[:, None], losses, metrics)

    def vectors_of(self, codes: Tensor) -> Tensor:
        return self.linear(self.basis[codes[..., 0]])
