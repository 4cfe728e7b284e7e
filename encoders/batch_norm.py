"""Batch normalisation (Ioffe & Szegedy 2015) whose batch is the global one, without the rows that are absent."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kernels.collectives import joint_mean, joint_sum, world


def joint_moments(x: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,) and variance (C,) of x (N, C, …) float32 over all ranks' rows, and how many values () each is of.

    present: (N,) bool, the rows that count; None for all.
    """
    group = world()
    weight = x.new_ones(len(x)) if present is None else present.to(x.dtype)
    weight = weight.view(-1, *[1] * (x.ndim - 1))
    others = [0, *range(2, x.ndim)]
    own = weight.sum() * math.prod(x.shape[2:])
    mean = joint_mean((weight * x).sum(others), own, group)
    centered = x - along_channels(mean, x)
    variance = joint_mean((weight * centered.square()).sum(others), own, group)
    return mean, variance, joint_sum(own, group)


def along_channels(values: Tensor, x: Tensor) -> Tensor:
    """values (C,) in the shape in which they go with x (N, C, …)."""
    return values.view(-1, *[1] * (x.ndim - 2))


class JointBatchNorm(_BatchNorm):
    """In training x (N, C, …) by the statistics of all ranks' rows; in evaluation as torch's, by the running ones.

    A mix-in before one of torch's or timm's classes, whose parameters and buffers it keeps.
    """

    rows: Tensor | None = None
    """(N,) bool, the rows that count, while a trunk reads a batch; None for all."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, …) -> (N, C, …)."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        mean, variance, count = joint_moments(x, self.rows)
        self.follow(mean.detach(), variance.detach(), count)
        y = (x - along_channels(mean, x)) * along_channels((variance + self.eps).rsqrt(), x)
        if self.affine:
            y = y * along_channels(self.weight, x) + along_channels(self.bias, x)
        y = y.to(input.dtype)
        # timm's classes hold what follows them.
        for name in ("drop", "act"):
            if hasattr(self, name):
                y = getattr(self, name)(y)
        return y

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics towards those (C,) of a batch of `count` () values; one of none leaves them."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        share = momentum * (count > 0)
        unbiased = variance * count / (count - 1).clamp(min=1)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any (N, C, …) will do."""


@cache
def joint_class(kind: type) -> type:
    """The class of a batch norm, with JointBatchNorm before it."""
    return type(f"Joint{kind.__name__}", (JointBatchNorm, kind), {})


def join_batch_norms(module: nn.Module) -> None:
    """Make every batch norm inside of a module one of the global batch; parameters, buffers and names stay."""
    for part in module.modules():
        if isinstance(part, _BatchNorm) and not isinstance(part, JointBatchNorm):
            part.__class__ = joint_class(type(part))  # type: ignore[arg-type]  # a class has a hash


@contextmanager
def counted_rows(module: nn.Module, present: Tensor | None) -> Iterator[None]:
    """Let the statistics of a module's batch norms count the rows (N,) that are present, within the block."""
    norms = [part for part in module.modules() if isinstance(part, JointBatchNorm)]
    for norm in norms:
        norm.rows = present
    try:
        yield
    finally:
        for norm in norms:
            norm.rows = None
