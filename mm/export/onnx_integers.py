"""A model in eight or four bits as ONNX Runtime has them: `MatMulNBits` for linear layers, `QMoE` for experts.

Both take unsigned numbers around the middle of their range, and scales in float32; nothing is rounded again. What is
read is rounded within the operators, token by token. Convolutions and tables are stored in eight bits and multiplied
out, which ONNX Runtime does once, when a session is made.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parametrize

from kernels.errors import UserError
from mm.compress.integers import Packed, two_a_byte
from mm.export.integers import with_integers
from mm.export.onnx_runtime import interleaved, router_logits, routing
from mm.model.inference import prepare
from mm.model.moe import MoE
from mm.model.multimodal import MultimodalModel

BLOCKS = (256, 128, 64, 32, 16)
"""Values of a row that share a scale, as ONNX Runtime takes them."""
INT8_ACTIVATIONS = 4
"""ONNX Runtime's accuracy level of operators that round what they read to eight bits."""


class NBitLinear(nn.Module):
    """A linear layer of integer weights, one node of ONNX Runtime's: (..., I) -> (..., O); outside of an export it
    computes nothing.

    Args:
        packed: its weight (O, I).
        bias: (O,) or None.
        rounds: whether what it reads is rounded to eight bits.
    """

    values: Tensor
    scale: Tensor

    def __init__(self, packed: Packed, bias: Tensor | None, rounds: bool) -> None:
        super().__init__()
        rows, inputs = packed.shape
        block = block_of(packed)
        self.attributes: dict[str, Any] = {
            "K": inputs,
            "N": rows,
            "bits": packed.bits,
            "block_size": block,
            "accuracy_level": INT8_ACTIVATIONS if rounds else 0,
        }
        self.outputs = rows
        missing = -inputs % block
        self.register_buffer(
            "values",
            unsigned(pad(packed.integers(), (0, missing)), packed.bits).unflatten(1, (-1, block * packed.bits // 8)),
        )
        self.register_buffer("scale", scales_of(packed, block))
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        inputs = (x, self.values, self.scale, None, None, self.bias)
        shape = (*x.shape[:-1], self.outputs)
        return torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits", inputs, self.attributes, dtype=x.dtype, shape=shape, version=1
        )


class NBitExperts(nn.Module):
    """Experts of integer weights as one node of ONNX Runtime's; outside of an export it computes nothing.

    Args:
        moe: whose experts they are.
        w_in: (E, 2H, D), gate rows first.
        w_out: (E, D, H).

    Raises:
        UserError: scales are not of equal blocks.
    """

    w_in: Tensor
    w_in_scale: Tensor
    w_out: Tensor
    w_out_scale: Tensor

    def __init__(self, moe: MoE, w_in: Packed, w_out: Packed) -> None:
        super().__init__()
        self.num_experts = moe.config.num_experts
        self.attributes: dict[str, Any] = routing(moe.config.top_k) | {"expert_weight_bits": w_in.bits}
        block = 0
        if max(w_in.scale.shape[1], w_out.scale.shape[1]) > 1:
            block = min(w_in.group, w_out.group)
            self.attributes["block_size"] = block
            if block not in BLOCKS or w_in.group % block or w_out.group % block:
                raise UserError(
                    f"experts of {w_in.shape[2]} and {w_out.shape[2]} inputs have no common block of scales, which"
                    " ONNX Runtime wants of four bits: --bits 8 has one scale a row"
                )
        for name, packed in (("w_in", w_in), ("w_out", w_out)):
            values = unsigned(packed.integers(), packed.bits).view(*packed.shape[:2], -1)
            scale = scales_of(packed, block) if block else packed.scale.float()
            scale = scale.view(*packed.shape[:2], -1) if block else scale.view(packed.shape[:2])
            if name == "w_in":
                values, scale = interleaved(values), interleaved(scale)
            self.register_buffer(name, values)
            self.register_buffer(f"{name}_scale", scale)

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x (N, D), chosen (N, K) int64, weights (N, K) -> (N, D)."""
        logits = router_logits(chosen, weights, self.num_experts)
        inputs = (x, logits, self.w_in, self.w_in_scale, None, self.w_out, self.w_out_scale)
        return torch.onnx.ops.symbolic(
            "com.microsoft::QMoE", inputs, self.attributes, dtype=x.dtype, shape=x.shape, version=1
        )


class Stored(nn.Module):
    """Integers (R, I) int8 -> the weight (…) that they stand for, multiplied out where it is read.

    Args:
        packed: of eight bits.
    """

    scale: Tensor

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.shape = packed.shape
        self.values = packed.values
        self.register_buffer("scale", packed.scale.float())

    def forward(self, values: Tensor) -> Tensor:
        """(R, I) int8 -> (…)."""
        return (values.float() * self.scale).view(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor]:
        """The weight -> its integers, which are known."""
        return (self.values,)


def prepare_onnx(model: MultimodalModel, packed: Mapping[str, Packed], rounds: bool) -> MultimodalModel:
    """A copy of a model for inference whose large weights are integers.

    Args:
        model: which is not changed.
        packed: those weights by name, see `mm.compress.quantize.places`.
        rounds: whether linear layers round what they read to eight bits.

    Raises:
        UserError: the experts' scales are none that ONNX Runtime takes.
    """

    def experts(moe: MoE, name: str) -> nn.Module:
        return NBitExperts(moe, packed[f"{name}.w_in"], packed[f"{name}.w_out"])

    def linear(weight: Packed, bias: Tensor | None) -> nn.Module:
        return NBitLinear(weight, bias, rounds)

    def other(owner: nn.Module, name: str, weight: Packed) -> None:
        if weight.bits == 8:
            parametrize.register_parametrization(owner, name, Stored(weight), unsafe=True)
        else:
            getattr(owner, name).data.copy_(weight.unpack())

    return with_integers(prepare(model, experts), packed, linear, other)


def block_of(packed: Packed) -> int:
    """The largest block of values with one scale that ONNX Runtime takes; the rest of a row's last one is filled up."""
    fitting = [block for block in BLOCKS if packed.group % block == 0]
    return fitting[0] if fitting else BLOCKS[-1]


def scales_of(packed: Packed, block: int) -> Tensor:
    """(R, blocks of a row) float32: each group's scale for every block of it."""
    blocks = -(-packed.integers().shape[1] // block)
    scale = packed.scale.float()
    return scale.repeat_interleave(blocks // scale.shape[1], 1).contiguous()


def unsigned(integers: Tensor, bits: int) -> Tensor:
    """(R, I) int8 -> uint8 around the middle of their range, two of four bits in a byte, the even column low."""
    shifted = (integers.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    return shifted if bits == 8 else two_a_byte(shifted)
