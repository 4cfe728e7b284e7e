"""Gather and sum across the ranks of a group: the one home of collectives.

Each function takes a `group` of torch.distributed. Without one it returns its argument, as in a single process.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

Group = dist.ProcessGroup | None


def world() -> Group:
    """The group of all ranks where torch.distributed is initialised with more than one, else None."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def rank_and_size(group: Group) -> tuple[int, int]:
    """This process's rank in the group, and the number of its ranks; (0, 1) without a group."""
    if group is None:
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def gather(x: Tensor, group: Group) -> Tensor:
    """x (B, ...) on each of W ranks -> (W·B, ...) in rank order, on every rank.

    The gradient of a rank's x is the sum, over all ranks, of their gradients of its rows. Integers and booleans are
    gathered without gradients.
    """
    if group is None:
        return x
    if x.is_floating_point():
        return torch.cat(all_gather(x.contiguous(), group), 0)
    return torch.cat(_parts(x.contiguous(), group), 0)


def gather_uneven(x: Tensor, group: Group) -> Tensor:
    """x (N, ...), N of its own on every rank -> (ΣN, ...) in rank order, on every rank. Without gradients."""
    if group is None:
        return x
    lengths = torch.cat(_parts(torch.tensor([len(x)], device=x.device), group)).tolist()
    padding = x.new_zeros(max(lengths) - len(x), *x.shape[1:])
    shards = _parts(torch.cat([x, padding]), group)
    return torch.cat([shard[:length] for shard, length in zip(shards, lengths, strict=True)])


def sum_over_ranks(x: Tensor, group: Group) -> Tensor:
    """x of any shape, summed in place over the group's ranks; returns x. Without gradients."""
    if group is not None:
        dist.all_reduce(x, group=group)
    return x


def _parts(x: Tensor, group: Group) -> list[Tensor]:
    """x of one shape on every rank -> every rank's x, in rank order."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x, group=group)
    return parts
