"""What decides the logits of a contrastive loss."""

from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """n rows of this rank against B columns of the whole batch: logits = scale · a bᵀ; the sigmoid loss adds a bias."""

    a: Tensor
    """(n, D)."""
    b: Tensor
    """(B, D)."""
    scale: Tensor
    """()."""
    row_ids: Tensor | None
    """(n,) int64."""
    ids: Tensor | None
    """(B,) int64: pairs with equal ids off the positives' diagonal are skipped."""
    first: int
    """The column of row 0's positive."""
    dtype: torch.dtype
    """Of the factors of products, on CUDA; their sums and everything else are float32 at least."""
