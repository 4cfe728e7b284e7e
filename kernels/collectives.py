"""Gather and sum across the ranks of a group: the one home of collectives.

Each function takes a `group` of torch.distributed. Without one it returns what a single process has.

The convention of all gradients: every rank computes the loss of the global batch, the same number on each. What passes
a gradient back to a rank's own data sums it over the ranks that read them, so these gradients are W times those of one
process, and those of parameters that act behind a gather are the whole ones on every rank. The mean over ranks, which
DDP takes of either, is the gradient of one process with the global batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_to_all_single

Group = dist.ProcessGroup | None

_samples: list[dist.ProcessGroup] = []
"""The group that samples are divided among, where it is not that of all ranks."""
_stages: list[dist.ProcessGroup] = []
"""The group that the stages of a pipeline are divided among, where there is one."""


def all_ranks() -> Group:
    """The group of all ranks where torch.distributed is initialised with more than one, else None."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def world() -> Group:
    """The group whose ranks have samples of their own: all ranks, unless `divide_samples` says otherwise; else None."""
    if not _samples:
        return all_ranks()
    return _samples[0] if dist.get_world_size(_samples[0]) > 1 else None


def divide_samples(group: Group) -> None:
    """Divide samples among the ranks of a group, which takes losses and statistics together; None for all ranks.

    Ranks outside of it compute other parts of the same samples, such as other heads.
    """
    _samples[:] = [] if group is None else [group]


def pipeline() -> Group:
    """The group whose ranks have the same samples and different blocks of a model; None where each has all."""
    return _stages[0] if _stages else None


def divide_stages(group: Group) -> None:
    """Divide the blocks of a model among the ranks of a group; None for none."""
    _stages[:] = [] if group is None else [group]


def step_group() -> Group:
    """The group that takes a training step together: `world()` where gradients are recorded.

    Without gradients a forward is an evaluation, which a rank may do alone: None.
    """
    return world() if torch.is_grad_enabled() else None


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
        return _Gather.apply(x, group)
    return torch.cat(_parts(x.contiguous(), group), 0)


class _Gather(torch.autograd.Function):
    """As torch's own, whose backward over gloo knows no group but that of all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return torch.cat(_parts(x.contiguous(), group))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous()
        _, ranks = rank_and_size(ctx.group)
        own = grad.new_empty(len(grad) // ranks, *grad.shape[1:])
        dist.reduce_scatter_tensor(own, grad, group=ctx.group)
        return own, None


def lengths_over_ranks(x: Tensor, group: Group) -> list[int]:
    """x (N, ...), N of its own on every rank -> every rank's N, in rank order."""
    if group is None:
        return [len(x)]
    return torch.cat(_parts(torch.tensor([len(x)], device=x.device), group)).tolist()


def gather_uneven(x: Tensor, group: Group, lengths: Sequence[int] | None = None) -> Tensor:
    """x (N, ...), N of its own on every rank -> (ΣN, ...) in rank order, on every rank; gradients as of `gather`.

    lengths: every rank's N; exchanged where it is not known.
    """
    if group is None:
        return x
    if lengths is None:
        lengths = lengths_over_ranks(x, group)
    return _GatherUneven.apply(x, lengths, group)


class _GatherUneven(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lengths: Sequence[int], group: Group) -> Tensor:
        rank, _ = rank_and_size(group)
        start = sum(lengths[:rank])
        ctx.own = slice(start, start + len(x))
        ctx.group = group
        padding = x.new_zeros(max(lengths) - len(x), *x.shape[1:])
        shards = _parts(torch.cat([x, padding]), group)
        return torch.cat([shard[:length] for shard, length in zip(shards, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad = sum_over_ranks(grads[0].clone(memory_format=torch.contiguous_format), ctx.group)
        return grad[ctx.own], None, None


def rows_of_ranks(x: Tensor, rows: Tensor, group: Group) -> Tensor:
    """Rows of all ranks' x, on every rank; gradients as of `gather`.

    x (N, ...), the same N on every rank; rows (R,) int64, the same on every rank: row n of rank r is r·N + n. ->
    (R, ...) in x's dtype.
    """
    if group is None:
        return chosen_rows(x, rows)
    rank, _ = rank_and_size(group)
    local = rows - rank * len(x)
    own = (local >= 0) & (local < len(x))
    found = chosen_rows(x, local.clamp(0, len(x) - 1))
    # One rank has a row, the others add zeros, which changes no bit of it.
    masked = torch.where(own.view(-1, *[1] * (x.ndim - 1)), found, 0)
    if x.is_floating_point():
        return joint_sum(masked, group)
    return sum_over_ranks(masked.long(), group).to(x.dtype)


def chosen_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x (N, ...), rows (R,) int64 -> x[rows], (R, ...).

    On a CPU `index_select` takes half as long, forward and backward; on a GPU its backward adds in no fixed order.
    """
    return x.index_select(0, rows) if x.device.type == "cpu" else x[rows]


def joint_sum(x: Tensor, group: Group) -> Tensor:
    """x of any shape -> its sum over the group's ranks; gradients as of `gather`."""
    if group is None:
        return x
    return _JointSum.apply(x, group)


class _JointSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return sum_over_ranks(x.clone(memory_format=torch.contiguous_format), group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return sum_over_ranks(grads[0].clone(memory_format=torch.contiguous_format), ctx.group), None


def joint_mean(total: Tensor, count: Tensor | int, group: Group) -> Tensor:
    """A mean over the global batch: the ranks' totals, added, over the sum of their counts.

    total: the sum of this rank's values, of any shape. count: how many these are, () or a number, the same for all
    elements; a mean of nothing is 0. Gradients as of `gather`.
    """
    if group is None:
        return total / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))
    counted = torch.as_tensor(count, dtype=total.dtype, device=total.device)
    joint = joint_sum(torch.cat([total.flatten(), counted.view(1)]), group)
    return joint[:-1].view_as(total) / joint[-1].detach().clamp(min=1)


def shared_input(x: Tensor, group: Group) -> Tensor:
    """x of any shape, the same on every rank -> x, for ranks that each compute a part of what follows.

    The gradient is the sum of theirs; the counterpart of `partial_sum`.
    """
    return x if group is None else _SharedInput.apply(x, group)


class _SharedInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return sum_over_ranks(grads[0].clone(memory_format=torch.contiguous_format), ctx.group), None


def partial_sum(x: Tensor, group: Group) -> Tensor:
    """x of any shape, each rank's part of one result -> their sum, on which every rank goes on alike.

    The gradient is that of one rank, since all have the same.
    """
    return x if group is None else _PartialSum.apply(x, group)


class _PartialSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return sum_over_ranks(x.clone(memory_format=torch.contiguous_format), group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def exchange(x: Tensor, sent: Sequence[int], received: Sequence[int], group: Group) -> Tensor:
    """Rows x (N, ...) to other ranks, theirs to this one -> (R, ...) in rank order.

    Args:
        x: the rows for rank 0 first, then those for rank 1, …
        sent: how many go to each rank.
        received: how many come from each.
        group: of these ranks.
    """
    if group is None:
        return x
    found = x.new_empty(sum(received), *x.shape[1:])
    return all_to_all_single(found, x.contiguous(), list(received), list(sent), group)


def sum_over_ranks(x: Tensor, group: Group) -> Tensor:
    """x of any shape, summed in place over the group's ranks; returns x. Without gradients."""
    if group is not None:
        dist.all_reduce(x, group=group)
    return x


def largest_over_ranks(x: Tensor, group: Group) -> Tensor:
    """x of any shape, in place the largest of the group's ranks; returns x. Without gradients."""
    if group is not None:
        dist.all_reduce(x, dist.ReduceOp.MAX, group=group)
    return x


def from_rank(x: Tensor, rank: int, group: Group) -> Tensor:
    """x of any shape, in place what a rank of the group has; returns x. Without gradients."""
    if group is not None:
        dist.broadcast(x, group=group, group_src=rank)
    return x


def gather_objects(value: Any, group: Group) -> list[Any]:
    """Any value on each rank -> every rank's, in rank order, on every rank: pickled, so that shapes may differ."""
    _, ranks = rank_and_size(group)
    found: list[Any] = [value] * ranks
    if group is not None:
        dist.all_gather_object(found, value, group)
    return found


def _parts(x: Tensor, group: Group) -> list[Tensor]:
    """x of one shape on every rank -> every rank's x, in rank order."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x, group=group)
    return parts
