"""Multi-head attention, self or cross, through `scaled_dot_product_attention`."""

import torch
from torch import Tensor, nn

from kernels.attention import attention


class Attention(nn.Module):
    """x (B, T, D), context (B, S, D), mask (B, S) bool of real context tokens -> (B, T, D).

    Self-attention is `attention(x, x, mask)`. Queries and keys are RMS-normed per head (Henry et al. 2020), so that
    logits stay bounded under bf16. A row whose context is all padding returns zeros.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.out_proj = nn.Linear(width, width)
        self.q_norm, self.k_norm = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (self.split(f(y)) for f, y in ((self.q_proj, x), (self.k_proj, context), (self.v_proj, context)))
        y = attention(self.q_norm(q.float()), self.k_norm(k.float()), v, mask)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        # A sample without any context would get softmax over nothing; what it attends to is nothing, so it gets
        # nothing.
        return torch.where(mask.any(1)[:, None, None], y, 0)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, T, D / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)
