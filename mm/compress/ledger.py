"""What a model takes on disk and in memory: bits per weight of each group of tensors."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from mm.compress.nf4 import NF4

BACKBONE_GROUPS = (
    ("moe.shared", "shared expert"),
    ("router", "router"),
    ("moe.", "experts"),
    ("attention", "attention"),
)
"""A part of a parameter's name, and the group it then belongs to; the first that fits counts."""


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


def ledger(model: nn.Module) -> list[LedgerRow]:
    """Bits per weight of each group of tensors, as they are stored now, largest first; the last row is all of them."""
    weights = defaultdict[str, int](int)
    stored = defaultdict[str, int](int)
    owners: dict[str, Any] = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        group = group_of(name)
        stored[group] += parameter.numel() * parameter.element_size()
        owner = owners[name.rpartition(".")[0]]
        packing = owner[0] if isinstance(owner, parametrize.ParametrizationList) else None
        if isinstance(packing, NF4):
            weights[group] += packing.shape.numel()
            stored[group] += packing.stored()
        else:
            weights[group] += parameter.numel()
    rows = [LedgerRow(group, count, stored[group]) for group, count in weights.items()]
    rows.sort(key=lambda row: row.weights, reverse=True)
    rows.append(LedgerRow("all", sum(weights.values()), sum(stored.values())))
    return rows


def group_of(name: str) -> str:
    """The part of the model that a parameter belongs to, as a reader of a size ledger knows it."""
    if "lora_" in name:
        return "adapters"
    first, *rest = name.split(".")
    if first == "encoders":
        return f"{rest[0]} encoder"
    if first != "backbone":
        return "heads"
    for part, group in BACKBONE_GROUPS:
        if part in name:
            return group
    return "backbone, the rest"
