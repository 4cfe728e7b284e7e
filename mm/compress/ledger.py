"""What a model takes on disk and in memory: bits per weight of each group of tensors."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from torch import nn
from torch.nn.utils import parametrize

from mm.compress.nf4 import NF4
from mm.compress.quantize import SCALE, SMALLEST

BACKBONE_GROUPS = (
    ("moe.shared", "shared expert"),
    ("router", "router"),
    ("moe.", "experts"),
    ("attention", "attention"),
)
"""A part of a parameter's name, and the group it then belongs to; the first that fits counts."""


ROLES = (
    ("loss", r"^loss\."),
    ("vocabulary", r"\.vocabulary$|^terms\."),
    ("mel bands", r"\.log_mel\."),
    ("experts", r"\.moe\.w_(in|out)$"),
    ("router", r"\.router\.affinity$"),
    ("shared expert", r"\.moe\.shared\."),
    ("attention", r"^backbone\..*attention\."),
    ("codes", r"\.(codebook|basis|sums)$"),
    ("embeddings", r"^encoders\..*(embed|\.token\.|position)|^causal\.position$"),
    ("encoders", r"^encoders\."),
)
"""Roles of tensors by pattern of their names, the first that fits; others are of the heads."""
SMALL = "norms, biases, statistics"
"""Role of what has one dimension, or few numbers."""
IN_FLOAT = (SMALL, "router", "vocabulary", "mel bands", "loss")
"""Roles that a compressed run keeps as they were."""
BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "BOOL": 1}


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


def file_ledger(path: Path) -> list[LedgerRow]:
    """Bytes of each role in a file of weights, read from its header, largest first; then its names, and all of it.

    Args:
        path: of a run's model.safetensors, packed or not. Packed values count as the weights they stand for, their
            scales under a role of their own.
    """
    weights = defaultdict[str, int](int)
    stored = defaultdict[str, int](int)
    with safe_open(str(path), framework="pt") as file:
        names = set(file.keys())
        for name in names:
            part = file.get_slice(name)
            kind = part.get_dtype()
            count = math.prod(part.get_shape())
            is_scale = name.endswith(SCALE) and name.removesuffix(SCALE) in names
            role = "scales" if is_scale else role_of(name, part.get_shape())
            stored[role] += count * BYTES[kind]
            if not is_scale:
                weights[role] += 2 * count if kind == "U8" else count
    rows = [LedgerRow(role, weights[role], size) for role, size in stored.items()]
    rows.sort(key=lambda row: row.stored, reverse=True)
    rest = path.stat().st_size - sum(stored.values())
    rows.append(LedgerRow("names", 0, rest))
    rows.append(LedgerRow("all", sum(weights.values()), path.stat().st_size))
    return rows


def role_of(name: str, shape: Sequence[int]) -> str:
    """What a tensor of a run is there for, by its name and shape."""
    for role, pattern in ROLES[:3]:
        if re.search(pattern, name):
            return role
    if len(shape) < 2 or math.prod(shape) < SMALLEST:
        return SMALL
    return next((role for role, pattern in ROLES if re.search(pattern, name)), "heads")


def float_roles(path: Path) -> dict[str, list[str]]:
    """Of a file of weights the tensors in 16 bits and more by role, scales left out: what packing has not reached."""
    found = defaultdict[str, list[str]](list)
    with safe_open(str(path), framework="pt") as file:
        names = set(file.keys())
        for name in sorted(names):
            part = file.get_slice(name)
            is_scale = name.endswith(SCALE) and name.removesuffix(SCALE) in names
            if BYTES[part.get_dtype()] > 1 and not is_scale:
                found[role_of(name, part.get_shape())].append(name)
    return dict(found)


def ledger_table(rows: Sequence[LedgerRow]) -> None:
    """Print bytes by role."""
    table = Table(title="bytes by role")
    table.add_column("role")
    for column in ("numbers", "bytes", "bits each", "of all, %"):
        table.add_column(column, justify="right")
    for row in rows:
        bits = f"{row.bits:.2f}" if row.weights else "—"
        share = 100 * row.stored / rows[-1].stored
        table.add_row(row.group, f"{row.weights:,}", f"{row.stored:,}", bits, f"{share:.1f}")
    Console().print(table)
