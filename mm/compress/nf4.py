"""Base weights in four bits (NF4, Dettmers et al. 2023, arXiv:2305.14314, "QLoRA"), the fused experts included.

bitsandbytes packs blocks of 64 values into half bytes beside their scales, which are themselves packed in 8 bits. It
does so for a tensor of any shape, and without a GPU too. A weight is unpacked whenever it is used.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parametrize

from mm.compress.parametrization import remove_parametrization
from mm.model.moe import EXPERT_WEIGHTS
from mm.optional import require

BLOCK = 64
"""Values that share a scale."""
SMALLEST = 256
"""Numbers below which a weight stays as it is: its tables would be larger than what packing saves."""
TABLES = ("absmax", "code", "offset", "nested_absmax", "nested_code")
"""Buffers of a packed weight."""


class NF4(nn.Module):
    """Packed bytes (B, 1) uint8, two values in each -> the weight (...) in its own shape, float32.

    The scales are buffers: they follow the packed bytes to a device, and stand in the state dict beside them.
    """

    absmax: Tensor
    """Scales of the blocks, uint8, themselves in blocks."""
    code: Tensor
    """The 16 values that half a byte can stand for."""
    offset: Tensor
    """Of the scales, ()."""
    nested_absmax: Tensor
    """Scales of the scales' blocks."""
    nested_code: Tensor
    """The 256 values that a scale's byte can stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.functional = require("bitsandbytes.functional")
        for name in TABLES:
            self.register_buffer(name, None)
        self.nested_block = 0
        self.rows = Size()
        self.shape = Size()

    def forward(self, packed: Tensor) -> Tensor:
        weight = self.functional.dequantize_4bit(packed.data, self.state())
        return weight.flatten()[: self.shape.numel()].view(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor]:
        """The weight -> its packed bytes; their scales stay here."""
        self.shape = weight.shape
        # A row is a whole block: bitsandbytes 0.50.2 unpacks a row that ends within one with the wrong scales on a
        # CPU with AVX512 (width 32: a relative error of 0.20 instead of 0.09), and compiles a function for half a
        # minute to unpack an odd number of values.
        flat = weight.detach().float().flatten()
        rows = pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
        packed, state = self.functional.quantize_4bit(rows, blocksize=BLOCK, quant_type="nf4", compress_statistics=True)
        self.rows = rows.shape
        self.nested_block = state.state2.blocksize
        # bitsandbytes keeps one table for all weights; a buffer that is shared could not be moved or restored alone.
        self.absmax = state.absmax.clone()
        self.code = state.code.clone()
        self.offset = state.offset.clone()
        self.nested_absmax = state.state2.absmax.clone()
        self.nested_code = state.state2.code.clone()
        return (packed,)

    def state(self) -> Any:
        """The scales and tables as bitsandbytes takes them."""
        state = self.functional.QuantState
        nested = state(
            absmax=self.nested_absmax, code=self.nested_code, blocksize=self.nested_block, dtype=torch.float32
        )
        return state(
            absmax=self.absmax,
            shape=self.rows,
            code=self.code,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=torch.float32,
            offset=self.offset,
            state2=nested,
        )

    def stored(self) -> int:
        """Bytes of the scales and tables."""
        return sum(table.numel() * table.element_size() for table in self.buffers())


def quantize(model: nn.Module, skip: tuple[str, ...] = ()) -> list[str]:
    """Freeze the model and pack its linear layers' and experts' weights; -> the names of what is packed.

    skip: beginnings of names that are left alone, such as frozen trunks, whose features are cached.
    """
    require("bitsandbytes")
    model.requires_grad_(False)
    packed = []
    for name, module, weight in list(_packable(model)):
        if not name.startswith(skip):
            parametrize.register_parametrization(module, weight, NF4(), unsafe=True)
            packed.append(name)
    return packed


def dequantize(model: nn.Module) -> None:
    """Packed weights as plain float32 parameters again, without what packing took from them; adapters come off first,
    with `merge_and_unload`."""
    modules: list[Any] = list(model.modules())
    for module in modules:
        if not parametrize.is_parametrized(module):
            continue
        for weight in list(module.parametrizations):
            if isinstance(module.parametrizations[weight][0], NF4):
                remove_parametrization(module, weight)


def is_quantized(model: nn.Module) -> bool:
    """Whether any weight is packed."""
    return any(isinstance(module, NF4) for module in model.modules())


def _packable(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(full name, the module that owns it, its last name) of every weight that is worth packing."""
    for name, module in model.named_modules():
        weights = ("weight",) if isinstance(module, nn.Linear) else EXPERT_WEIGHTS
        for weight in weights:
            value = getattr(module, weight, None)
            if isinstance(value, nn.Parameter) and value.numel() >= SMALLEST:
                yield f"{name}.{weight}", module, weight
