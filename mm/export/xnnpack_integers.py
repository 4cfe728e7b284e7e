"""A model in eight bits as XNNPACK has them: linear layers of int8 weights that round what they read, token by token.

What ExecuTorch's partitioner gives to XNNPACK is a pattern of PT2E's operations. They are written here one by one, so
that a run's own integers and scales are stored: its quantiser would choose scales of its own, and leave experts alone.
Convolutions and tables stay in float32, of the values that eight bits stand for: their patterns want activations of
one scale, which nothing here has.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  # registers the operations
from torch.nn.functional import linear as product

from kernels.errors import UserError
from mm.compress.integers import Packed, pack
from mm.export.integers import with_integers
from mm.model.inference import DenseExperts, prepare
from mm.model.moe import MoE
from mm.model.multimodal import MultimodalModel

INT8 = (-128, 127, torch.int8)


class Int8Linear(nn.Module):
    """A linear layer (..., I) -> (..., O) of int8 weights.

    Args:
        values: (O, I) int8.
        scale: (O,) float32.
        bias: (O,) or None.
    """

    values: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, values: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("values", values.contiguous())
        self.register_buffer("scale", scale.float().contiguous())
        self.register_buffer("zero", torch.zeros(len(values), dtype=torch.int64))
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Round each token to eight bits around a zero of its own, and multiply."""
        ops = torch.ops.quantized_decomposed
        scale, zero = ops.choose_qparams_per_token_asymmetric.default(x, torch.int8)
        rounded = ops.quantize_per_token.default(x, scale, zero, *INT8)
        read = ops.dequantize_per_token.default(rounded, scale, zero, *INT8, torch.float32)
        weight = ops.dequantize_per_channel.default(self.values, self.scale, self.zero, 0, *INT8)
        return product(read, weight, self.bias)


class Int8Experts(DenseExperts):
    """All experts of every token as one gated MLP of int8 weights.

    XNNPACK has one scale for a row, and a row of the second product holds all experts: it is rounded again, with one.

    Args:
        moe: whose experts they are.
        name: of it.
        w_in: (E, 2H, D), gate rows first.
    """

    def __init__(self, moe: MoE, name: str, w_in: Packed) -> None:
        super().__init__(moe, name)
        rows = w_in.integers().view(w_in.shape).chunk(2, 1)
        scales = w_in.scale.view(w_in.shape[:2]).chunk(2, 1)
        self.gate = Int8Linear(rows[0].flatten(0, 1), scales[0].flatten())
        self.up = Int8Linear(rows[1].flatten(0, 1), scales[1].flatten())
        again = pack(self.down.get_parameter("weight"), 8)
        self.down = Int8Linear(again.integers(), again.scale[:, 0])


def prepare_xnnpack(model: MultimodalModel, packed: Mapping[str, Packed], rounds: bool) -> MultimodalModel:
    """A copy of a model for inference whose linear layers and experts are integers.

    Args:
        model: which is not changed.
        packed: weights of eight bits by name, see `mm.compress.quantize.places`.
        rounds: whether linear layers round what they read to eight bits.

    Raises:
        UserError: they do not.
    """
    if not rounds:
        raise UserError("--to executorch --bits 8 rounds what layers read: compress without --activation_bits 32")

    def experts(moe: MoE, name: str) -> nn.Module:
        return Int8Experts(moe, name, packed[f"{name}.w_in"])

    def linear(weight: Packed, bias: Tensor | None) -> nn.Module:
        return Int8Linear(weight.integers(), weight.scale[:, 0], bias)

    def other(owner: nn.Module, name: str, weight: Packed) -> None:
        getattr(owner, name).data.copy_(weight.unpack())

    return with_integers(prepare(model, experts), packed, linear, other)
