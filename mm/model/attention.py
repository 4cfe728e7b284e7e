"""Multi-head attention, self or cross, through `scaled_dot_product_attention`, and what draws it to marked tokens."""

import torch
from torch import Tensor, nn

from kernels.attention import attention

STRONGEST = 4.0
"""Bound of what is added to a marked token's logits: unmarked ones keep at least e^-4 of their weight beside it."""


class Attention(nn.Module):
    """x (B, T, D), context (B, S, D), mask (B, S) bool of real context tokens -> (B, T, D).

    Self-attention is `attention(x, x, mask)`. Queries and keys are RMS-normed per head (Henry et al. 2020), so that
    logits stay bounded under bf16. A row whose context is all padding returns zeros.
    """

    term_bias: nn.Parameter | None

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
        self.register_parameter("term_strength", None)

    def add_term_bias(self) -> None:
        """From now on each head adds to the logits of marked tokens what it learns; it starts at zero."""
        if self.term_bias is None:
            self.term_bias = nn.Parameter(self.q_proj.weight.new_zeros(self.heads))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor, term_mask: Tensor | None = None) -> Tensor:
        """marked (B, S) bool: the context tokens to which attention is drawn, see `add_term_bias`."""
        q, k, v = (self.split(f(y)) for f, y in ((self.q_proj, x), (self.k_proj, context), (self.v_proj, context)))
        bias = None
        if self.term_bias is not None and term_mask is not None:
            bias = self.strength()[:, None, None] * term_mask[:, None, None, :]
        y = attention(self.q_norm(q.float()), self.k_norm(k.float()), v, mask, bias)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        # A sample without any context would get softmax over nothing; what it attends to is nothing, so it gets
        # nothing.
        return torch.where(mask.any(1)[:, None, None], y, 0)

    def strength(self) -> Tensor:
        """What is added to the logits of marked tokens, (heads,)."""
        assert self.term_bias is not None
        return STRONGEST * torch.tanh(self.term_bias / STRONGEST)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, T, D / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)
