"""The global term: InfoNCE (van den Oord et al. 2018, CLIP's symmetric form) or the pairwise sigmoid loss
(Zhai et al. 2023)."""

from typing import Literal

import torch
from torch import Tensor, nn

from kernels.collectives import world
from kernels.info_nce import info_nce, sigmoid_loss

CEILING = 4.6052
"""exp(4.6052) = 100, CLIP's largest scale: above it a batch's gradient comes from one or two pairs."""


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

    def forward(self, a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
        """Pairs with equal ids off the diagonal are not negatives of each other.

        Under torch.distributed the batch is the global one.
        """
        if self.kind == "sigmoid":
            return sigmoid_loss(a.float(), b.float(), self.scale, self.bias.squeeze(0), ids=ids, group=world())
        return info_nce(a.float(), b.float(), self.scale, ids=ids, group=world())


def initial_log_scale(temperature: float) -> nn.Parameter:
    """The logarithm of the inverse temperature, (1,): FSDP2 shards no parameter of no dimension."""
    return nn.Parameter(torch.tensor(1 / temperature).log().reshape(1))


def inverse_temperature(log_scale: Tensor) -> Tensor:
    """log_scale (1,) -> ()."""
    return log_scale.squeeze(0).exp()


@torch.no_grad()
def clamp_log_scale(log_scale: Tensor) -> None:
    """Bring log_scale (1,) back below its ceiling, in place, after an optimizer step.

    A clamp in the forward has no gradient above the ceiling: a scale that stepped over it would never come back.
    """
    log_scale.clamp_(max=CEILING)
