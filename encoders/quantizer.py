"""Vector quantizers behind one signature: (B, T, C) in; vectors, codes, named losses and metrics out.

`ema`       the codebook follows its clusters by a moving average     van den Oord et al. 2017 (1711.00937), app. A.1
`cosine`    the same on the unit sphere, l2-normalised codes          Yu et al. 2021, ViT-VQGAN (2110.04627)
`residual`  each quantizer codes the residual of those before it      Zeghidour et al. 2021, SoundStream (2107.03312)
`fsq`       rounding of a few bounded channels, no codebook           Mentzer et al. 2023 (2309.15505)
`simvq`     a frozen random codebook seen through one learned linear  Zhu et al. 2024 (2411.02038)
Any of them may be grouped: a vector in equal parts, each with a quantizer of its own (Jégou et al. 2011).
"""

from encoders.quantizers.base import Quantized, Quantizer, QuantizerConfig
from encoders.quantizers.ema import CosineQuantizer, EMAQuantizer
from encoders.quantizers.finite_scalar import FiniteScalarQuantizer
from encoders.quantizers.grouped import GroupedQuantizer
from encoders.quantizers.residual import ResidualQuantizer
from encoders.quantizers.simvq import SimQuantizer

__all__ = ["QUANTIZERS", "Quantized", "Quantizer", "QuantizerConfig", "build_quantizer"]

QUANTIZERS: dict[str, type[Quantizer]] = {
    "ema": EMAQuantizer,
    "cosine": CosineQuantizer,
    "residual": ResidualQuantizer,
    "fsq": FiniteScalarQuantizer,
    "simvq": SimQuantizer,
}


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer that `config.kind` names, or one for each of `config.groups` parts of a vector."""
    if config.groups > 1:
        return GroupedQuantizer(config, build_quantizer)
    return QUANTIZERS[config.kind](config)
