"""Contrastive losses without the (B, B) matrix: InfoNCE (van den Oord et al. 2018, arXiv:1807.03748; both directions
as in CLIP, arXiv:2103.00020) and the sigmoid loss (SigLIP, arXiv:2303.15343), by tiles with recomputation (Inf-CL,
arXiv:2410.17243).

In the gathered form every rank computes its rows of the logits against the columns of all ranks. The value is the
mean over the whole batch on every rank. The gradients of the shards are multiplied by the number of ranks, and those
of scale and bias are the whole batch's on every rank, so that averaging over ranks, as DDP does, gives the gradient
of one process with it all.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.collectives import Group, gather, gather_uneven, lengths_over_ranks, rank_and_size, sum_over_ranks
from kernels.dispatch import choose_path, compute_dtype
from kernels.info_nce import reference, tiled


def info_nce(a: Tensor, b: Tensor, scale: Tensor, *, ids: Tensor | None = None, group: Group = None) -> Tensor:
    """Symmetric InfoNCE of unit vectors: the mean of both directions' cross entropies; logits = scale · a bᵀ.

    a, b (B, D), row i of one the positive of row i of the other; scale () the inverse temperature; ids (B,) int64:
    pairs off the diagonal with equal ids are no negatives. -> () in nats, float32 at least. Only products' factors are
    narrower, in the Triton path: in the dtype of a and b or autocast's, TF32 where torch.backends allows it. Gradients
    for a, b and scale. With a ``group``, a, b, ids are this rank's shard, which may be empty on
    some ranks but not on all (see the module's docstring). Raises ValueError when the shapes disagree.
    """
    _check(a, b, ids, group)
    path = _path("info_nce", a)
    dtype = compute_dtype(a)
    with torch.autocast(a.device.type, enabled=False):
        if path == "reference":
            return reference.info_nce(a, b, scale, ids, group)
        return _InfoNCE.apply(*_prepared(path, a, b, scale), ids, group, dtype, path)


def sigmoid_loss(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, *, ids: Tensor | None = None, group: Group = None
) -> Tensor:
    """-1/B Σ_ij log σ(±(scale a_i·b_j + bias)), + on the diagonal, - off it: a, b (B, D), scale (), bias () -> () in
    nats.

    ids, group, dtypes and errors as for `info_nce`; gradients for a, b, scale and bias.
    """
    _check(a, b, ids, group)
    path = _path("sigmoid_loss", a)
    dtype = compute_dtype(a)
    with torch.autocast(a.device.type, enabled=False):
        if path == "reference":
            return reference.sigmoid_loss(a, b, scale, bias, ids, group)
        return _SigmoidLoss.apply(*_prepared(path, a, b, scale, bias), ids, group, dtype, path)


class _InfoNCE(torch.autograd.Function):
    """Saves the inputs and one number per row and column."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, scale: Tensor, ids: Tensor | None, group: Group, dtype: torch.dtype, path: str
    ) -> Tensor:
        lengths = lengths_over_ranks(a, group)
        all_b = gather_uneven(b, group, lengths)
        all_ids = _gather_ids(ids, group, lengths)
        first = _first(lengths, group)
        rows, columns, positives = tiled.nce_forward(a, all_b, scale, ids, all_ids, first, dtype, path)
        own = columns
        if group is not None:
            columns = torch.logsumexp(gather(columns, group).view(-1, all_b.shape[0]), dim=0)
            own = columns[first : first + a.shape[0]]
        losses = torch.lerp(rows, own, 0.5).sub_(positives)
        ctx.save_for_backward(a, b, scale, rows, columns, ids)
        ctx.group = group
        ctx.lengths = lengths
        ctx.how = dtype, path
        if group is None:
            return losses.mean()
        return sum_over_ranks(losses.sum(), group) / all_b.shape[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        a, b, scale, rows, columns, ids = ctx.saved_tensors
        group = ctx.group
        lengths = ctx.lengths
        all_b = gather_uneven(b, group, lengths)
        all_ids = _gather_ids(ids, group, lengths)
        first = _first(lengths, group)
        weight = rank_and_size(group)[1] / all_b.shape[0]
        d_a, d_b, d_scale = tiled.nce_backward(
            a, all_b, scale, rows, columns, grads[0], weight, ids, all_ids, first, *ctx.how
        )
        d_b = _own_share(d_b, group, lengths)
        return d_a.to(a.dtype), d_b.to(b.dtype), _mean(d_scale, group), None, None, None, None


class _SigmoidLoss(torch.autograd.Function):
    """Saves the inputs only."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        scale: Tensor,
        bias: Tensor,
        ids: Tensor | None,
        group: Group,
        dtype: torch.dtype,
        path: str,
    ) -> Tensor:
        lengths = lengths_over_ranks(a, group)
        all_b = gather_uneven(b, group, lengths)
        all_ids = _gather_ids(ids, group, lengths)
        total = tiled.sigmoid_forward(a, all_b, scale, bias, ids, all_ids, _first(lengths, group), dtype, path)
        ctx.save_for_backward(a, b, scale, bias, ids)
        ctx.group = group
        ctx.lengths = lengths
        ctx.how = dtype, path
        return sum_over_ranks(total, group) / all_b.shape[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        a, b, scale, bias, ids = ctx.saved_tensors
        group = ctx.group
        lengths = ctx.lengths
        all_b = gather_uneven(b, group, lengths)
        all_ids = _gather_ids(ids, group, lengths)
        first = _first(lengths, group)
        weight = rank_and_size(group)[1] / all_b.shape[0]
        d_a, d_b, d_scale, d_bias = tiled.sigmoid_backward(
            a, all_b, scale, bias, grads[0], weight, ids, all_ids, first, *ctx.how
        )
        d_b = _own_share(d_b, group, lengths)
        scalars = _mean(d_scale, group), _mean(d_bias, group)
        return d_a.to(a.dtype), d_b.to(b.dtype), *scalars, None, None, None, None


def _own_share(d_b: Tensor, group: Group, lengths: list[int]) -> Tensor:
    """This rank's rows (n, D) of the sum over ranks of d_b (B, D)."""
    if group is None:
        return d_b
    rank, _ = rank_and_size(group)
    return sum_over_ranks(d_b, group).split(lengths)[rank]


def _mean(x: Tensor, group: Group) -> Tensor:
    """Over ranks, in place."""
    return x if group is None else sum_over_ranks(x, group).div_(rank_and_size(group)[1])


def _gather_ids(ids: Tensor | None, group: Group, lengths: list[int]) -> Tensor | None:
    return None if ids is None else gather_uneven(ids, group, lengths)


def _first(lengths: list[int], group: Group) -> int:
    """The column in which this rank's first positive stands."""
    rank, _ = rank_and_size(group)
    return sum(lengths[:rank])


def _path(op: str, a: Tensor) -> str:
    """The path by device; a rank without rows launches no kernel."""
    path = choose_path(op, a)
    return "cpu" if path == "triton" and len(a) == 0 else path


def _prepared(path: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """a, b contiguous, and the scalars; float32 at least, but Triton takes narrow a and b and multiplies them as they
    are.
    """
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    vectors = tensors[0].dtype if path == "triton" else dtype
    return tuple(tensor.to(vectors if tensor.ndim else dtype).contiguous() for tensor in tensors)


def _check(a: Tensor, b: Tensor, ids: Tensor | None, group: Group) -> None:
    if a.ndim != 2 or a.shape != b.shape or (a.shape[0] == 0 and group is None):
        raise ValueError(f"a is {tuple(a.shape)} and b {tuple(b.shape)}; they must both be (B, D) with B > 0")
    if ids is not None and ids.shape != a.shape[:1]:
        raise ValueError(f"ids is {tuple(ids.shape)}; it must be (B,) = ({a.shape[0]},)")
