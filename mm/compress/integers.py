"""Weights in eight or four bits: signed integers beside a scale for each row, or for each 64 or 32 values of one.

The grid is torchao's symmetric one: 2ᵇ steps, the scale so that the largest value lies half a step beyond the last. Of
eight bits the scale is one a row, of four one for each group of a row's inputs. Scales are bfloat16: they have the
range of a weight, and values are rounded to the grid of the scale as it is stored.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GROUPS = (64, 32)
"""Values of a row that share a scale in four bits: the first that divides it."""
SMALLEST_SCALE = 1e-12
"""Of a row of zeros."""


@dataclass(frozen=True)
class Packed:
    """A weight of R rows in integers.

    Args:
        values: int8 (R, I) of eight bits; uint8 (R, I / 2) of four, the even columns in the low half of a byte.
        scale: (R, G) bfloat16, of the G groups of each row.
        shape: of the weight.
    """

    values: Tensor
    scale: Tensor
    shape: torch.Size

    @property
    def bits(self) -> int:
        """Of a value."""
        return 8 if self.values.dtype == torch.int8 else 4

    @property
    def group(self) -> int:
        """Values that share a scale."""
        return self.integers().shape[1] // self.scale.shape[1]

    def integers(self) -> Tensor:
        """(R, I) int8, in -128..127 or -8..7."""
        if self.bits == 8:
            return self.values
        low = self.values & 15
        high = self.values >> 4
        return torch.stack([low, high], 2).flatten(1).to(torch.int8) - 8

    def unpack(self) -> Tensor:
        """The weight, float32 in its own shape."""
        grouped = self.integers().float().unflatten(1, (self.scale.shape[1], -1))
        return (grouped * self.scale.float()[..., None]).view(self.shape)

    def bytes(self) -> int:
        """Values and scales."""
        return self.values.numel() + 2 * self.scale.numel()


def pack(weight: Tensor, bits: int, leading: int = 1) -> Packed:
    """Round a weight to integers.

    Args:
        weight: (…) of any float dtype.
        bits: 8 or 4; of rows that are no multiple of two long, 8.
        leading: how many of its dimensions tell rows apart: two of experts (E, O, I), else one.
    """
    rows = weight.detach().float().flatten(0, leading - 1).flatten(1)
    if rows.shape[1] % 2:
        bits = 8
    grouped = rows.unflatten(1, (-1, group_of(rows.shape[1], bits)))
    scale = scale_of(grouped, bits)
    return stored(to_grid(grouped, scale, bits), scale, bits, weight.shape)


def from_grid(weight: Tensor, scale: Tensor, bits: int) -> Packed:
    """A weight (…) that lies on the grid of its scales (R, G) -> the integers that it stands for."""
    grouped = weight.reshape(*scale.shape, -1)
    return stored(to_grid(grouped, scale[..., None], bits), scale[..., None], bits, weight.shape)


def stored(integers: Tensor, scale: Tensor, bits: int, shape: torch.Size) -> Packed:
    """Whole numbers (R, G, n) and scales (R, G, 1) of a weight of some shape, as they are kept."""
    values = integers.to(torch.int8).flatten(1)
    if bits == 4:
        values = two_a_byte((values + 8).to(torch.uint8))
    return Packed(values.contiguous(), scale[..., 0].to(torch.bfloat16), shape)


def two_a_byte(halves: Tensor) -> Tensor:
    """(R, I) uint8 below 16 -> (R, I / 2), the even columns in the low half of a byte."""
    return halves[:, ::2] | (halves[:, 1::2] << 4)


def group_of(inputs: int, bits: int) -> int:
    """How many values of a row of so many inputs share a scale."""
    fitting = [group for group in GROUPS if bits == 4 and inputs % group == 0]
    return fitting[0] if fitting else inputs


def scale_of(grouped: Tensor, bits: int) -> Tensor:
    """(R, G, n) float32 -> (R, G, 1) bfloat16, the step of each group's grid."""
    largest = grouped.abs().amax(-1, keepdim=True)
    return (largest / (2**bits - 1) * 2).clamp(min=SMALLEST_SCALE).to(torch.bfloat16)


def to_grid(grouped: Tensor, scale: Tensor, bits: int) -> Tensor:
    """(R, G, n) and steps (R, G, 1) -> whole numbers in -2ᵇ⁻¹..2ᵇ⁻¹ - 1, as floats."""
    half = 2 ** (bits - 1)
    return (grouped / scale.float()).round().clamp(-half, half - 1)


def fake_quantize_tokens(x: Tensor, bits: int = 8) -> Tensor:
    """Activations on the symmetric grid of their own token: (…, D) -> (…, D), with the gradient of x.

    torchao's fake quantiser has no symmetric grid per token (0.18.0 raises NotImplementedError); ONNX Runtime's
    MatMulNBits quantises what it multiplies so.
    """
    fixed = x.detach().float()
    most = 2 ** (bits - 1) - 1
    scale = (fixed.abs().amax(-1, keepdim=True) / most).clamp(min=SMALLEST_SCALE)
    on_grid = ((fixed / scale).round() * scale).to(x.dtype)
    return x + (on_grid - x).detach() if x.requires_grad else on_grid
