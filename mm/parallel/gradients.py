"""The norm of gradients that processes divide in different ways."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


def clip_by_norm(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """Scale gradients in place so that their joint norm is at most `largest`.

    Args:
        parameters: whole, or divided; torch takes the norm of those that are divided alike.
        largest: the bound.

    Returns:
        the norm () before, of all gradients of all processes.
    """
    alike: dict[object, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            way = (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None
            alike.setdefault(way, []).append(parameter)
    norms = [whole(get_total_norm([p.grad for p in group])) for group in alike.values()]  # type: ignore[misc]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    for group in alike.values():
        clip_grads_with_norm_(group, largest, norm)
    return norm


def whole(x: Tensor) -> Tensor:
    """x of any shape that processes divide, gathered; any other as it is."""
    return x.full_tensor() if isinstance(x, DTensor) else x
