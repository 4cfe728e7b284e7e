"""The global term: InfoNCE (van den Oord et al. 2018, CLIP's symmetric form) or the pairwise sigmoid loss
(Zhai et al. 2023)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from kernels.collectives import Group, rank_and_size, sum_over_ranks, world
from kernels.info_nce import info_nce, sigmoid_loss

CEILING = 4.6052
"""exp(4.6052) = 100, CLIP's largest scale: above it a batch's gradient comes from one or two pairs."""

FAR = -1e4
"""The cosine that hides a pair: its probability is exactly zero at every temperature that the loss learns."""


class Contrastive(nn.Module):
    """Unit vectors a (B, D), b (B, D), ids (B,) -> (). Owns the temperature (and the sigmoid loss's bias)."""

    def __init__(self, kind: Literal["softmax", "sigmoid"] = "softmax", temperature: float = 0.07) -> None:
        super().__init__()
        self.kind = kind
        self.log_scale = initial_log_scale(temperature)
        if kind == "sigmoid":
            self.bias = nn.Parameter(torch.tensor([-10.0]))

    @property
    def scale(self) -> Tensor:
        """The inverse temperature ()."""
        return inverse_temperature(self.log_scale)

    def forward(self, a: Tensor, b: Tensor, ids: Tensor, real: Tensor | None = None) -> Tensor:
        """Pairs with equal ids off the diagonal are not negatives of each other.

        Under torch.distributed the batch is the global one, of as many rows on every rank.

        Args:
            a: unit vectors (B, D).
            b: unit vectors (B, D).
            ids: (B,) int64.
            real: (B,) bool, the rows that are pairs; None for all. The others change nothing.
        """
        group = world()
        a = a.float()
        b = b.float()
        if real is None:
            return self.of_pairs(a, b, ids, group)
        a, b, ids = without(a, b, ids, real)
        _, ranks = rank_and_size(group)
        count = sum_over_ranks(real.sum(), group)
        total = self.of_pairs(a, b, ids, group) * (len(a) * ranks)
        if self.kind == "sigmoid":
            # The positive of a row that is no pair has the logit `bias`.
            missing = len(a) * ranks - count
            total = total - missing * nn.functional.softplus(-self.bias.squeeze(0))
        return total / count.clamp(min=1)

    def of_pairs(self, a: Tensor, b: Tensor, ids: Tensor, group: Group) -> Tensor:
        """Unit vectors a (B, D), b (B, D) and ids (B,) of this rank's pairs -> () of the group's."""
        if self.kind == "sigmoid":
            return sigmoid_loss(a, b, self.scale, self.bias.squeeze(0), ids=ids, group=group)
        return info_nce(a, b, self.scale, ids=ids, group=group)


def without(a: Tensor, b: Tensor, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take rows out of a contrastive loss without changing its shapes.

    Two more channels make a row that is not real nobody's negative and nobody its negative; it keeps itself as its
    positive, of logit 0, beside which nothing stands. Among each other such rows have one id.

    Args:
        a: unit vectors (B, D).
        b: unit vectors (B, D).
        ids: (B,) int64.
        real: (B,) bool.

    Returns:
        a (B, D + 2), b (B, D + 2) and ids (B,).
    """
    there = real[:, None].to(a.dtype)
    away = FAR * (1 - there)
    left = torch.cat([torch.where(real[:, None], a, 0), away, there], 1)
    right = torch.cat([torch.where(real[:, None], b, 0), there, away], 1)
    return left, right, ids.masked_fill(~real, -1)


def initial_log_scale(temperature: float) -> nn.Parameter:
    """The logarithm of the inverse temperature, (1,): FSDP2 shards no parameter of no dimension."""
    return nn.Parameter(torch.tensor(1 / temperature).log().reshape(1))


def inverse_temperature(log_scale: Tensor) -> Tensor:
    """log_scale (1,) -> ()."""
    return log_scale.squeeze(0).exp()


@torch.no_grad()
def clamp_log_scale(log_scale: Tensor, highest: float | None = None) -> None:
    """Bring log_scale (1,) back below its ceiling, in place, after an optimizer step; highest: the temperature that it
    may not exceed, None for any.

    A clamp in the forward has no gradient above the ceiling: a scale that stepped over it would never come back.
    """
    floor = None if highest is None else -math.log(highest)
    log_scale.clamp_(min=floor, max=CEILING)
