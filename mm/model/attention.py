"""Multi-head attention, self or cross, through `scaled_dot_product_attention`, with a learned bias towards terms."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from kernels.attention import attention
from kernels.errors import UserError
from kernels.rms_norm import RMSNorm, rms_norm
from mm.model.packed import Look, cut, spans_in

FEW_TOKENS = 16
"""Up to so many tokens joining the weights of queries, keys and values costs more than two products."""
LARGEST_TERM_BIAS = 4.0
"""Bound of what is added to the logits of a term's tokens: the others keep at least e^-4 of their weight beside it."""


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) of the spans of x (N, D) to each other -> (N', D).

    Queries and keys are RMS-normed per head (Henry et al. 2020), so that logits stay bounded under bf16.

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
        self.q_norm = RMSNorm(head_width)
        self.k_norm = RMSNorm(head_width)
        self.register_parameter("term_bias", None)

    def add_term_bias(self) -> None:
        """Give each head a learned bias on the logits of a term's tokens, zero-initialised; keep one that is there."""
        if self.term_bias is None:
            self.term_bias = nn.Parameter(self.q_proj.weight.new_zeros(self.heads))

    def forward(self, x: Tensor, looks: Sequence[Look]) -> Tensor:
        """Let tokens attend to others.

        Args:
            x: all tokens (N, D).
            looks: which of them attend to which.

        Returns:
            (N', D), the queries of all looks, one after another; zeros where a context has no real token.
        """
        spans = spans_in(looks)
        q, k, v = (cut(part, spans) for part in self.project(x))
        found = []
        for look in looks:
            bias = self.logit_bias(look.term_mask)
            # (B, T, heads, D / heads) -> (B, heads, T, D / heads)
            queries = q[look.queries].transpose(1, 2)
            keys = look.joined(k).transpose(1, 2)
            values = look.joined(v).transpose(1, 2)
            y = attention(queries, keys, values, look.mask, bias)
            found.append(y.transpose(1, 2).flatten(2).flatten(0, 1))
        y = self.out_proj(torch.cat(found))
        if all(look.attends is None for look in looks):
            return y
        # A softmax over an empty context means nothing: zeros take its place.
        return torch.where(torch.cat([look.attending(y) for look in looks]), y, 0)

    def weights(self, x: Tensor, look: Look) -> Tensor:
        """How much each query attends to each token of its context, to be looked at; `forward` never computes it.

        Args:
            x: all tokens (N, D).
            look: which of them attend to which.

        Returns:
            (B, heads, T, S) float32; a row sums to one over the real tokens of its context.
        """
        q, k, _ = (cut(part, spans_in([look])) for part in self.project(x))
        mask = None if look.mask is None else look.mask[:, None]
        return _shares(q[look.queries], look.joined(k).transpose(1, 2), mask, self.logit_bias(look.term_mask))

    def look_weights(self, q: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """How much `look` attends to each key, to be looked at: the same arguments -> (B, heads, T, S) float32."""
        return _shares(q, keys, mask)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (N, D) -> normed queries and keys, and values, (N, heads, D / heads) each."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        # A graph that is exported is of any number of tokens.
        many = torch.compiler.is_exporting() or len(x) > FEW_TOKENS
        if many and all(is_plain(projection) for projection in projections):
            weight = torch.cat([projection.weight for projection in projections])
            bias = torch.cat([projection.bias for projection in projections])
            projected = linear(x, weight, bias)
        else:
            # What stands in the place of a linear layer, as an adapter does, or around it has a forward of its own.
            projected = torch.cat([projection(x) for projection in projections], 1)
        # (N, 3 · D) -> (N, 3, heads, D / heads)
        q, k, v = projected.unflatten(1, (3, self.heads, -1)).unbind(1)
        return self.normed_queries(q), self.normed_keys(k), v

    def normed_queries(self, q: Tensor) -> Tensor:
        """Queries (..., D / heads) as the logits take them: these are products of both sides, so that the gains of both
        are given to one."""
        return rms_norm(q.float(), self.q_norm.weight * self.k_norm.weight, self.q_norm.eps)

    def normed_keys(self, k: Tensor) -> Tensor:
        """Keys (..., D / heads) as the logits take them."""
        return rms_norm(k.float(), eps=self.k_norm.eps)

    def project_rows(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`project` of tokens (B, T, D) -> (B, T, heads, D / heads) each."""
        q, k, v = (part.unflatten(0, x.shape[:2]) for part in self.project(x.flatten(0, 1)))
        return q, k, v

    def queries(self, x: Tensor) -> Tensor:
        """Tokens (B, T, D) -> normed queries (B, T, heads, D / heads), as `project` makes them."""
        return self.normed_queries(self.q_proj(x).unflatten(-1, (self.heads, -1)))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, S, D) -> normed keys, and values, (B, S, heads, D / heads) each, as `project` makes them."""
        k = self.k_proj(x).unflatten(-1, (self.heads, -1))
        v = self.v_proj(x).unflatten(-1, (self.heads, -1))
        return self.normed_keys(k), v

    def look(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Let queries attend to keys that lie ready.

        Args:
            q: (B, T, heads, D / heads).
            keys: (B, heads, S, D / heads).
            values: (B, heads, S, D / heads).
            mask: (B, T or 1, S) bool, what each query sees; at least one.

        Returns:
            (B, T, D). The bias towards terms is of captions that are read, and has no part in this.
        """
        y = attention(q.transpose(1, 2), keys, values, mask)
        return self.out_proj(y.transpose(1, 2).flatten(2))

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


def _shares(q: Tensor, keys: Tensor, mask: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """The softmax that fused attention does not give back.

    Args:
        q: (B, T, heads, D / heads).
        keys: (B, heads, S, D / heads).
        mask: (B, T or 1, S) bool, what each query sees; None for all.
        bias: added to the logits, (B, heads, 1, S).

    Returns:
        (B, heads, T, S) float32; a row sums to one.
    """
    # (B, T, heads, D / heads) -> (B, heads, T, D / heads)
    queries = q.transpose(1, 2).float()
    with torch.autocast(q.device.type, enabled=False):
        logits = queries @ keys.float().transpose(2, 3) / queries.shape[-1] ** 0.5
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None], -torch.inf)
    return logits.softmax(-1)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a product and nothing else: no hook sees what goes in, as where processes divide it."""
    return type(layer) is nn.Linear and not layer._forward_pre_hooks
