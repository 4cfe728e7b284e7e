"""The global term: InfoNCE (van den Oord et al. 2018, CLIP's symmetric form) or the pairwise sigmoid loss
(Zhai et al. 2023)."""

from typing import Literal

import torch
from torch import Tensor, nn

from kernels.collectives import world
from kernels.info_nce import info_nce, sigmoid_loss


class Contrastive(nn.Module):
    """Unit vectors a (B, D), b (B, D), ids (B,) -> (). Owns the temperature (and the sigmoid loss's bias)."""

    # exp(4.6) = 100, CLIP's ceiling: above it a batch's gradient comes from one or two pairs.
    ceiling = 4.6052

    def __init__(self, kind: Literal["softmax", "sigmoid"] = "softmax", temperature: float = 0.07) -> None:
        super().__init__()
        self.kind = kind
        self.log_scale = nn.Parameter(torch.tensor(1 / temperature).log())
        if kind == "sigmoid":
            self.bias = nn.Parameter(torch.tensor(-10.0))

    @property
    def scale(self) -> Tensor:
        return self.log_scale.clamp(max=self.ceiling).exp()

    def forward(self, a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
        """Pairs with equal ids off the diagonal are not negatives of each other.

        Under torch.distributed the batch is the global one.
        """
        group = world()
        if self.kind == "sigmoid":
            return sigmoid_loss(a.float(), b.float(), self.scale, self.bias, ids=ids, group=group)
        return info_nce(a.float(), b.float(), self.scale, ids=ids, group=group)
