"""A model in integers: which weights in how many bits, and what its layers then compute.

A linear layer has integer weights and rounds what it reads, token by token; experts have integer weights, as have the
convolutions of decoders, which no embedding reads; everything else that is large, other convolutions, tables of tokens,
positions and codes, has eight bits. The router, norms and biases stay in float: together they are a hundredth, and
routing is a decision. In sixteen bits the same tensors are bfloat16, which has no scales.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from encoders.quantizers.ema import EMAQuantizer
from kernels.errors import UserError
from mm.compress.integers import Packed, fake_quantize_tokens, from_grid, group_of, pack
from mm.compress.parametrization import remove_parametrization
from mm.model.moe import MoE, Router
from mm.optional import require

SMALLEST = 256
"""Numbers below which a tensor stays as it is: names and scales would take what packing saves."""
OTHER_BITS = 8
"""At least, of what is neither a linear layer's nor the experts' nor a decoder's."""
DECODER = ".decoder."
"""In the name of what reconstructs an encoder's inputs."""
HALF: Final = 16
"""Bits of bfloat16, which needs no grid and no scales."""
WHOLE: Final = 32
"""Bits of a weight as it was trained."""
SCALE = ".scale"
"""Behind the name of packed values in a file, for their scales."""
SUMS = ".sums"
"""A codebook's sums are its codes times their counts: they are computed again."""


@dataclass(frozen=True)
class QATConfig:
    """Bits of what is multiplied. The article's own names."""

    activation_bits: Literal[8, 32] = 8
    """Of what linear layers read, token by token; 32 leaves it as it is."""
    weight_bits: Literal[4, 8, 16] = 8
    """Of linear layers, experts and decoders; tables, positions and other convolutions have at least eight. 16 is
    bfloat16."""
    quant_scheme: Literal["symmetric"] = "symmetric"
    """Zero is zero."""

    def __post_init__(self) -> None:
        for name, known in (
            ("activation_bits", (8, 32)),
            ("weight_bits", (4, 8, HALF)),
            ("quant_scheme", ("symmetric",)),
        ):
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"{name}={value!r}: there are {', '.join(map(str, known))}")

    @property
    def rounds_activations(self) -> bool:
        """Whether linear layers round what they read."""
        return self.activation_bits == 8


class QuantizedLinear(nn.Linear):
    """A linear layer that rounds each token it reads to integers: (..., I) -> (..., O).

    Args:
        layer: whose weight and bias it has.
        activation_bits: of a number that is read; `encoders.state.weights_digest` asks for it.
    """

    def __init__(self, layer: nn.Linear, activation_bits: int) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight = layer.weight
        self.bias = layer.bias
        self.activation_bits = activation_bits
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return nn.functional.linear(fake_quantize_tokens(x, self.activation_bits), self.weight, self.bias)


class FakeQuantized(nn.Module):
    """A weight (…) -> itself on the grid of its integers, with the gradient of the weight (Jacob et al. 2018).

    torchao's fake quantiser, on the weight's rows: of experts (E, O, I) these are the E·O rows of the flattened one.

    Args:
        weight: of the shape that comes.
        bits: of a value.
        leading: dimensions that tell rows apart.
    """

    def __init__(self, weight: Tensor, bits: int, leading: int) -> None:
        super().__init__()
        qat = require("torchao.quantization.qat", "compress")
        rows = weight.flatten(0, leading - 1).flatten(1)
        bits = 8 if rows.shape[1] % 2 else bits
        self.leading = leading
        self.bits = bits
        self.quantizer = qat.IntxFakeQuantizer(
            qat.IntxFakeQuantizeConfig(
                getattr(torch, f"int{bits}"),
                group_size=group_of(rows.shape[1], bits),
                is_symmetric=True,
                scale_precision=torch.bfloat16,
            )
        )

    def forward(self, weight: Tensor) -> Tensor:
        """(…) -> (…)."""
        rows = weight.flatten(0, self.leading - 1).flatten(1)
        return self.quantizer(rows).view_as(weight)

    def packed(self, weight: Tensor) -> Packed:
        """What `forward` has made of a weight, as the integers that it rounded to: torchao divides by a scale in the
        scale's own precision, so that `pack` would find others for one value in twenty-five."""
        on_grid = self(weight).detach()
        return from_grid(on_grid, self.quantizer.scale.detach(), self.bits)


@dataclass(frozen=True)
class Place:
    """Where a weight is: `weight` of the module `owner`, its bits, and how many dimensions tell its rows apart."""

    owner: nn.Module
    weight: str
    bits: int
    leading: int = 1


def places(model: nn.Module, bits: int) -> dict[str, Place]:
    """Every tensor of a model that is packed, by its name; bits: of linear layers, experts and decoders."""
    return dict(_places(model, bits))


def _places(model: nn.Module, bits: int) -> Iterator[tuple[str, Place]]:
    for name, module in model.named_modules():
        if isinstance(module, MoE):
            for weight in ("w_in", "w_out"):
                yield f"{name}.{weight}", Place(module, weight, bits, 2)
        elif isinstance(module, nn.Linear):
            if is_packed(module):
                yield f"{name}.weight", Place(module, "weight", bits)
        elif not isinstance(module, Router):
            for weight, value in tensors_of(module):
                if value.ndim >= 2 and value.numel() >= SMALLEST and value.is_floating_point():
                    full = f"{name}.{weight}"
                    yield full, Place(module, weight, bits if DECODER in full else max(bits, OTHER_BITS))


def is_packed(layer: nn.Linear) -> bool:
    """Whether a linear layer is large enough to be packed; one of a single output is a score, and stays in float."""
    return layer.out_features > 1 and layer.weight.numel() >= SMALLEST


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters, and of a codebook its codes."""
    yield from module.named_parameters(recurse=False)
    if isinstance(module, EMAQuantizer):
        yield "codebook", module.codebook


def pack_state(state: Mapping[str, Tensor], where: Mapping[str, Place], known: Mapping[str, Packed]) -> dict[str, Any]:
    """A state dict with its large tensors as `Packed`, or of sixteen bits in bfloat16.

    Args:
        state: by name.
        where: of `places`.
        known: what tensors were packed as before: one that still has those values keeps them, since rounding to a grid
            of one's own would round twice.
    """
    packed: dict[str, Any] = {}
    for name, tensor in state.items():
        if name in where and where[name].bits == HALF:
            packed[name] = tensor.to(torch.bfloat16)
        elif name in where:
            before = known.get(name)
            if before is not None and torch.equal(before.unpack(), tensor):
                packed[name] = before
            else:
                packed[name] = pack(tensor, where[name].bits, where[name].leading)
        elif not name.endswith(SUMS):
            packed[name] = tensor
    return packed


def file_of(packed: Mapping[str, Any]) -> dict[str, Tensor]:
    """What `pack_state` makes, as the tensors of a file."""
    tensors = {}
    for name, value in packed.items():
        if isinstance(value, Packed):
            tensors[name] = value.values
            tensors[name + SCALE] = value.scale
        else:
            tensors[name] = value
    return tensors


def packed_of(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Packed]:
    """The packed ones of a file's tensors.

    Args:
        tensors: by name.
        shapes: of the model's.

    Raises:
        UserError: a tensor is not what its scales say.
    """
    found = {}
    for name, values in tensors.items():
        scale = tensors.get(name + SCALE)
        if scale is None or name not in shapes:
            continue
        found[name] = Packed(values, scale.to(torch.bfloat16), shapes[name])
        numbers = shapes[name].numel()
        whole = values.dtype in (torch.int8, torch.uint8) and values.ndim == 2 and scale.ndim == 2
        if not whole or values.numel() * (8 // found[name].bits) != numbers or len(scale) != len(values):
            raise UserError(
                f"{name} is packed as {tuple(values.shape)}, which is not the model's {tuple(shapes[name])}"
            )
    return found


def unpack_state(tensors: Mapping[str, Tensor], packed: Mapping[str, Packed]) -> dict[str, Tensor]:
    """The plain state of a file whose large tensors are packed; a codebook's sums are its codes times their counts."""
    state = {}
    for name, tensor in tensors.items():
        if name in packed:
            state[name] = packed[name].unpack()
        elif name.removesuffix(SCALE) not in packed:
            state[name] = tensor
    for name in list(state):
        if name.endswith(".codebook"):
            owner = name.removesuffix("codebook")
            counts = state.get(f"{owner}counts")
            if counts is not None:
                state.setdefault(f"{owner}sums", state[name] * counts[:, None])
    return state


def quantize_activations(model: nn.Module, bits: int) -> None:
    """Let every linear layer whose weight is packed round what it reads to so many bits; 32 changes nothing."""
    if bits == 32:
        return
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and is_packed(module):
            model.set_submodule(name, QuantizedLinear(module, bits))


def prepare_qat(model: nn.Module, config: QATConfig) -> list[str]:
    """Let a model train as it will be stored: weights on their grids, and linear layers that round what they read.

    Args:
        model: changed in place; `convert` takes it back.
        config: bits.

    Returns:
        the names of the weights that train on a grid: frozen ones are rounded once, at the end.
    """
    quantize_activations(model, config.activation_bits)
    trained = []
    for name, place in places(model, config.weight_bits).items():
        weight = getattr(place.owner, place.weight)
        if isinstance(weight, nn.Parameter) and weight.requires_grad:
            fake = FakeQuantized(weight, place.bits, place.leading)
            parametrize.register_parametrization(place.owner, place.weight, fake)
            trained.append(name)
    return trained


def convert(model: nn.Module) -> dict[str, Packed]:
    """Weights that were trained on their grids as plain parameters, with the values that they computed with.

    Returns:
        them in integers, by name.
    """
    found = {}
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for name, module in modules:
        if not parametrize.is_parametrized(module):
            continue
        for weight in list(module.parametrizations):
            chain = module.parametrizations[weight]
            if isinstance(chain[0], FakeQuantized):
                found[f"{name}.{weight}"] = chain[0].packed(chain.original)
                remove_parametrization(module, weight)
    return found
