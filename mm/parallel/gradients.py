"""The norm of gradients that processes divide in different ways."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DeviceMesh, DTensor

from kernels.collectives import pipeline, sum_over_ranks
from mm.parallel.experts import local

Way = tuple[DeviceMesh, tuple[int, ...]] | None
"""Processes and those of their dimensions that divide a tensor; None for a tensor that is whole."""
IN_STAGE = "_is_in_stage"
"""Marks a parameter that one process of a pipeline has alone."""


def clip_by_norm(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """Scale gradients in place so that their joint norm is at most `largest`, as torch's `clip_grad_norm_`, which
    takes no parameters that are divided in different ways.

    Args:
        parameters: whole, or divided.
        largest: the bound.

    Returns:
        the norm () before, of all gradients of all processes.
    """
    parameters = list(parameters)
    alike: dict[tuple[Way, bool], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            alike.setdefault((way_of(parameter.grad), is_in_stage(parameter)), []).append(local(parameter.grad))
    if not alike and pipeline() is None:
        return torch.zeros(())
    squares = [sum_of_squares(way, gradients) for (way, in_stage), gradients in alike.items() if not in_stage]
    in_stages = [sum_of_squares(way, gradients) for (way, in_stage), gradients in alike.items() if in_stage]
    if pipeline() is not None:
        own = torch.stack(in_stages).sum() if in_stages else torch.zeros((), device=parameters[0].device)
        squares.append(sum_over_ranks(own, pipeline()))
    norm = torch.stack(squares).sum().sqrt()
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for gradients in alike.values():
        torch._foreach_mul_(gradients, factor)
    return norm


def is_in_stage(parameter: Tensor) -> bool:
    """Whether one process of a pipeline has this parameter alone."""
    return getattr(parameter, IN_STAGE, False)


def way_of(x: Tensor) -> Way:
    """How a tensor is divided."""
    if not isinstance(x, DTensor):
        return None
    dims = [dim for dim, placement in enumerate(x.placements) if not placement.is_replicate()]
    return x.device_mesh, tuple(dims)


def sum_of_squares(way: Way, parts: list[Tensor]) -> Tensor:
    """() of all entries of tensors of which this process has parts."""
    squares = torch.stack(torch._foreach_norm(parts)).square().sum()
    if way is not None:
        mesh, dims = way
        for dim in dims:
            sum_over_ranks(squares, mesh.get_group(dim))
    return squares


def whole(x: Tensor) -> Tensor:
    """x of any shape that processes divide, gathered; any other as it is."""
    return x.full_tensor() if isinstance(x, DTensor) else x
