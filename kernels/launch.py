"""Starting Triton kernels: the host's part of it, which takes as long as a small kernel."""

import importlib.metadata
from functools import cache
from typing import Any

import torch
from torch import Tensor

KNOWN = "3.6."
"""The versions of Triton whose way of starting what it has compiled is used here."""
MOST = 4096
"""Kinds of calls that are remembered."""

_compiled: dict[tuple, Any] = {}


def launch(kernel: Any, grid: tuple[int, int], *arguments: Any, **options: Any) -> None:
    """``kernel[grid](*arguments, **options)``, all arguments by position, a tensor first.

    Triton takes the host several times as long as a small kernel runs to find what it compiled for such arguments.
    Here the same numbers, and tensors of the same dtype and alignment, start the same binary: whatever Triton
    specializes on is among those.
    """
    if not arguments[0].is_cuda or not _known():  # Triton's interpreter compiles nothing
        kernel[grid](*arguments, **options)
        return
    device = torch.cuda.current_device()
    key = (id(kernel), device, *options.values(), *map(_kind, arguments))
    compiled = _compiled.get(key)
    if compiled is None:
        if len(_compiled) >= MOST:
            _compiled.clear()
        _compiled[key] = kernel[grid](*arguments, **options)
        return
    stream = torch._C._cuda_getCurrentRawStream(device)
    compiled.run(*grid, 1, stream, compiled.function, compiled.packed_metadata, None, None, None, *arguments)


def ceil_div(count: int, size: int) -> int:
    """Triton's cdiv and next_power_of_2 may stand inside of kernels, and take twenty times as long outside."""
    return -(-count // size)


def power_of_two(least: int) -> int:
    """The smallest one that is ``least`` or more."""
    return 1 << max(0, least - 1).bit_length()


def _kind(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16
    return float if isinstance(argument, float) else argument


@cache
def _known() -> bool:
    return importlib.metadata.version("triton").startswith(KNOWN)
