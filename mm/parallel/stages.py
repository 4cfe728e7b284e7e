"""Parameters of blocks that another process of a pipeline has: they keep their names and are empty here.

So an optimizer, its groups and a checkpoint of them name all parameters on every process.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kernels.collectives import Group, from_rank, gather_objects, rank_and_size
from mm.parallel.gradients import IN_STAGE, whole


def empty(block: nn.Module) -> None:
    """Leave nothing of a block but names, and its buffers, which move alike everywhere."""
    for module in block.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            nothing = torch.empty([0] * parameter.ndim, dtype=parameter.dtype, device=parameter.device)
            setattr(module, name, nn.Parameter(nothing, requires_grad=parameter.requires_grad))


def mark_stages(blocks: nn.Module) -> None:
    """Mark the parameters of blocks that no other process of the pipeline has."""
    for parameter in blocks.parameters():
        if not is_elsewhere(parameter):
            setattr(parameter, IN_STAGE, True)


def is_elsewhere(tensor: Tensor) -> bool:
    """Whether a parameter, or what belongs to one, is of another process's block."""
    return tensor.numel() == 0


def here(named: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of what is named as tensors are, that which this process has."""
    return {name: value for name, value in named.items() if name not in tensors or not is_elsewhere(tensors[name])}


def whole_tensors(named: Mapping[str, Tensor], group: Group) -> Iterator[tuple[str, Tensor]]:
    """Names with tensors of any shape, whole, one at a time; called by all processes with the same names.

    Those that processes divide are gathered, those of another stage of the group's pipeline are fetched.
    """
    rank, ranks = rank_and_size(group)
    own = {name: (x.shape, x.dtype) for name, x in named.items() if not is_elsewhere(x)}
    owned = gather_objects(own, group)
    for name, part in named.items():
        owners = [owner for owner, found in enumerate(owned) if name in found]
        if 0 < len(owners) < ranks:
            (owner,) = owners
            shape, dtype = owned[owner][name]
            x = whole(part).contiguous() if owner == rank else torch.empty(shape, dtype=dtype, device=part.device)
            yield name, from_rank(x, owner, group)
        else:
            yield name, whole(part)
