"""Multi-head attention, self or cross, through `scaled_dot_product_attention`, with a learned bias towards terms."""

import torch
from torch import Tensor, nn

from kernels.attention import attention
from kernels.errors import UserError

LARGEST_TERM_BIAS = 4.0
"""Bound of what is added to the logits of a term's tokens: the others keep at least e^-4 of their weight beside it."""


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017): x (B, T, D), context (B, S, D), mask (B, S) bool -> (B, T, D).

    Self-attention is `attention(x, x, mask)`. Queries and keys are RMS-normed per head (Henry et al. 2020), so that
    logits stay bounded under bf16.

    Args:
        width: D, of the tokens on both sides.
        heads: number of heads, each D / heads wide.

    Raises:
        ValueError: width is not a multiple of heads.
    """

    term_bias: nn.Parameter | None

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"width {width} is not a multiple of heads {heads}")
        head_width = width // heads
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(head_width)
        self.k_norm = nn.RMSNorm(head_width)
        self.register_parameter("term_bias", None)

    def add_term_bias(self) -> None:
        """Give each head a learned bias on the logits of a term's tokens, zero-initialised; keep one that is there."""
        if self.term_bias is None:
            self.term_bias = nn.Parameter(self.q_proj.weight.new_zeros(self.heads))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor, term_mask: Tensor | None = None) -> Tensor:
        """Let every token of `x` attend to the real tokens of `context`.

        Args:
            x: queries (B, T, D).
            context: keys and values (B, S, D).
            mask: (B, S) bool, True where a context token is real.
            term_mask: (B, S) bool, the context tokens that belong to a term, see `add_term_bias`.

        Returns:
            (B, T, D); zeros in a row whose context is all padding.
        """
        q = self.split(self.q_proj(x))
        k = self.split(self.k_proj(context))
        v = self.split(self.v_proj(context))
        bias = self.logit_bias(term_mask)
        q = self.q_norm(q.float())
        k = self.k_norm(k.float())
        y = attention(q, k, v, mask, bias)
        y = y.transpose(1, 2).flatten(2)
        y = self.out_proj(y)
        # A softmax over an empty context is undefined: zeros take its place.
        attends = mask.any(1)[:, None, None]
        return torch.where(attends, y, 0)

    def logit_bias(self, term_mask: Tensor | None) -> Tensor | None:
        """What is added to the attention logits.

        Args:
            term_mask: (B, S) bool, or None where no context token belongs to a term.

        Returns:
            (B, heads, 1, S): each head's bias at the tokens of terms, zero elsewhere; None without terms or bias.
        """
        if self.term_bias is None or term_mask is None:
            return None
        per_head = self.bounded_term_bias()[:, None, None]
        return per_head * term_mask[:, None, None, :]

    def bounded_term_bias(self) -> Tensor:
        """The bias on the logits of a term's tokens, (heads,), within ± LARGEST_TERM_BIAS."""
        assert self.term_bias is not None
        return LARGEST_TERM_BIAS * torch.tanh(self.term_bias / LARGEST_TERM_BIAS)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, T, D / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)
