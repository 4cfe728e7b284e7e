"""Whether padding is dropped or computed and masked: the one place that decides it.

Dropping saves arithmetic, but its shapes depend on values. On a CPU the host reads them for nothing. On every other
device it would wait for them, and a step whose shapes depend on values cannot be captured: there padding is computed,
and masked. So it is in a graph that is exported, whatever device traces it.
"""

import torch
from torch import Tensor


def host_reads(x: Tensor) -> bool:
    """Whether the host reads a value of x without waiting for a device."""
    return x.device.type == "cpu" and not torch.compiler.is_exporting()


def real_rows(mask: Tensor) -> Tensor | None:
    """Where padding is dropped the positions (n,) int64 of what is real among mask (...) bool, flattened; None where it
    is computed."""
    if host_reads(mask):
        return mask.flatten().nonzero().squeeze(1)
    return None


def some_rows(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Positions of what is real among mask (...) bool, flattened: at most the first `most`.

    Returns:
        positions (n,) int64, and whether each is real (n,) bool. Where padding is dropped all of them are; else n is
        `most`, or the size of the mask if that is smaller.
    """
    flat = mask.flatten()
    rows = real_rows(flat)
    if rows is None:
        rows = flat.to(torch.uint8).argsort(descending=True, stable=True)
    rows = rows[:most]
    return rows, flat[rows]


def count_of(index: Tensor, size: int, real: Tensor | None = None) -> Tensor:
    """How often each number occurs, without waiting for the device as `torch.bincount` does.

    Args:
        index: (N,) int64 in 0..size-1.
        size: S.
        real: (N,) bool, which of them count; None for all.

    Returns:
        (S,) int64.
    """
    weight = torch.ones_like(index) if real is None else real.to(index.dtype)
    return index.new_zeros(size).scatter_add_(0, index, weight)
