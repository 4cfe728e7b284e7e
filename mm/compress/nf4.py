"""Base weights in four bits (NF4, Dettmers et al. 2023, arXiv:2305.14314, "QLoRA"), the fused experts included.

bitsandbytes packs blocks of 64 values into half bytes beside their scales, which are themselves packed in 8 bits. It
does so for a tensor of any shape, and without a GPU too. A weight is unpacked whenever it is used.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import Size, Tensor, nn
from torch.nn.utils import parametrize

from mm.adapt.lora import EXPERTS, remove_parametrization
from mm.optional import require

BLOCK = 64
"""Values that share a scale."""
SMALLEST = 256
"""Numbers below which a weight stays as it is: its tables would be larger than what packing saves."""


@dataclass(frozen=True)
class LedgerRow:
    """What a group of tensors takes: weights by number, as they are stored in bytes, scales and tables included."""

    group: str
    weights: int
    stored: int

    @property
    def bits(self) -> float:
        """Per weight."""
        return 8 * self.stored / self.weights


class NF4(nn.Module):
    """Packed bytes (B, 1) uint8, two values in each -> the weight (...) in its own shape, float32."""

    def __init__(self) -> None:
        super().__init__()
        self.functional = require("bitsandbytes.functional")
        self.state: Any = None
        self.shape = Size()

    def forward(self, packed: Tensor) -> Tensor:
        return self.functional.dequantize_4bit(packed.data, self.state).view(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor]:
        """The weight -> its packed bytes; their scales stay here."""
        self.shape = weight.shape
        # A row is a whole block: bitsandbytes 0.50.2 unpacks a row that ends within one with the wrong scales on a
        # CPU with AVX512 (width 32: a relative error of 0.20 instead of 0.09).
        width = BLOCK if weight.numel() % BLOCK == 0 else weight.numel()
        packed, self.state = self.functional.quantize_4bit(
            weight.detach().float().reshape(-1, width).contiguous(),
            blocksize=BLOCK,
            quant_type="nf4",
            compress_statistics=True,
        )
        return (packed,)

    def stored(self) -> int:
        """Bytes of the scales and tables."""
        nested = self.state.state2
        tensors = (self.state.absmax, self.state.code, nested.absmax, nested.code, self.state.offset)
        return sum(t.numel() * t.element_size() for t in tensors)


def quantize(model: nn.Module, skip: tuple[str, ...] = ()) -> list[str]:
    """Freeze the model and pack its linear layers' and experts' weights; -> the names of what is packed.

    skip: beginnings of names that are left alone, such as frozen trunks, whose features are cached.
    """
    require("bitsandbytes")
    model.requires_grad_(False)
    packed = []
    for name, module in list(model.named_modules()):
        weights = ("weight",) if isinstance(module, nn.Linear) else EXPERTS
        for weight in weights:
            value, full = getattr(module, weight, None), f"{name}.{weight}"
            if isinstance(value, nn.Parameter) and value.numel() >= SMALLEST and not full.startswith(skip):
                parametrize.register_parametrization(module, weight, NF4(), unsafe=True)
                packed.append(full)
    return packed


def dequantize(model: nn.Module) -> None:
    """Packed weights as plain float32 parameters again, without what packing took from them; adapters come off first,
    with `merge_and_unload`."""
    modules: list[Any] = list(model.modules())
    for module in modules:
        for weight in list(module.parametrizations) if parametrize.is_parametrized(module) else ():
            if isinstance(module.parametrizations[weight][0], NF4):
                remove_parametrization(module, weight)


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, NF4) for module in model.modules())


def ledger(model: nn.Module) -> list[LedgerRow]:
    """Bits per weight of each group of tensors, as they are stored now, largest first; the last row is all of them."""
    weights, stored = defaultdict[str, int](int), defaultdict[str, int](int)
    owners: dict[str, Any] = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        owner, group = owners[name.rpartition(".")[0]], group_of(name)
        stored[group] += parameter.numel() * parameter.element_size()
        if isinstance(owner, parametrize.ParametrizationList) and isinstance(packing := owner[0], NF4):
            weights[group] += packing.shape.numel()
            stored[group] += packing.stored()
        else:
            weights[group] += parameter.numel()
    rows = sorted((LedgerRow(g, n, stored[g]) for g, n in weights.items()), key=lambda row: -row.weights)
    return [*rows, LedgerRow("all", sum(weights.values()), sum(stored.values()))]


def group_of(name: str) -> str:
    """The part of the model that a parameter belongs to, as a reader of a size ledger knows it."""
    if "lora_" in name:
        return "adapters"
    first, *rest = name.split(".")
    if first == "encoders":
        return f"{rest[0]} encoder"
    if first != "backbone":
        return "heads"
    for part, group in (
        ("moe.shared", "shared expert"),
        ("router", "router"),
        ("moe.", "experts"),
        ("attention", "attention"),
    ):
        if part in name:
            return group
    return "backbone, the rest"
