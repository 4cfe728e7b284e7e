"""Multi-head attention, self or cross, through `scaled_dot_product_attention`, with a learned bias towards terms."""

import torch
from torch import Tensor, nn

from kernels.attention import attention

LARGEST_TERM_BIAS = 4.0
"""Bound of what is added to the logits of a term's tokens: the others keep at least e^-4 of their weight beside it."""


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
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(width // heads)
        self.k_norm = nn.RMSNorm(width // heads)
        self.register_parameter("term_bias", None)

    def add_term_bias(self) -> None:
        """From now on each head learns what it adds to the logits of a term's tokens, starting at zero."""
        if self.term_bias is None:
            self.term_bias = nn.Parameter(self.q_proj.weight.new_zeros(self.heads))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor, term_mask: Tensor | None = None) -> Tensor:
        """term_mask (B, S) bool: the context tokens that belong to a term, see `add_term_bias`."""
        q = self.split(self.q_proj(x))
        k = self.split(self.k_proj(context))
        v = self.split(self.v_proj(context))
        bias = None
        if self.term_bias is not None and term_mask is not None:
            bias = self.bounded_term_bias()[:, None, None] * term_mask[:, None, None, :]
        y = attention(self.q_norm(q.float()), self.k_norm(k.float()), v, mask, bias)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        # Softmax over an empty context has no meaning: such a row attends to nothing and gets zeros.
        return torch.where(mask.any(1)[:, None, None], y, 0)

    def bounded_term_bias(self) -> Tensor:
        """What is added to the logits of a term's tokens, (heads,), within ± LARGEST_TERM_BIAS."""
        assert self.term_bias is not None
        return LARGEST_TERM_BIAS * torch.tanh(self.term_bias / LARGEST_TERM_BIAS)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, T, D / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)
