"""Attention against the formula, and against padding."""

import math

import pytest
import torch
from torch.nn.functional import rms_norm

from mm.model.attention import Attention
from mm.model.packed import Span, masked_look


def build(width: int = 12, heads: int = 3) -> Attention:
    torch.manual_seed(0)
    return Attention(width, heads)


def context(rows: int = 3, tokens: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, tokens, 12, generator=torch.Generator().manual_seed(seed))


def attend(
    attention: Attention, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, term_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """What x (B, T, D) attends to in y (B, S, D), whose real tokens are in mask (B, S)."""
    queries = Span(0, *x.shape[:2])
    context = Span(queries.stop, *y.shape[:2])
    tokens = torch.cat([x.flatten(0, 1), y.flatten(0, 1)])
    return attention(tokens, [masked_look(queries, [context], mask, term_mask)]).view_as(x)


def test_it_is_softmax_of_normed_queries_and_keys() -> None:
    attention, x, y = build(), context(tokens=4), context(seed=1)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1]])

    def heads(projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(2, (3, 4)).transpose(1, 2)

    q, k = (rms_norm(heads(f(z)), (4,)) for f, z in ((attention.q_proj, x), (attention.k_proj, y)))
    logits = q @ k.transpose(2, 3) / math.sqrt(4)
    weights = logits.masked_fill(~mask[:, None, None], float("-inf")).softmax(-1)
    expected = attention.out_proj((weights @ heads(attention.v_proj(y))).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attend(attention, x, y, mask), expected)


def test_padding_changes_nothing() -> None:
    attention, x, y = build(), context(tokens=4), context(seed=1)
    mask = torch.ones(3, 5, dtype=torch.bool)
    longer = torch.cat([y, torch.full((3, 2, 12), 9.0)], 1)
    longer_mask = torch.cat([mask, torch.zeros(3, 2, dtype=torch.bool)], 1)
    torch.testing.assert_close(attend(attention, x, longer, longer_mask), attend(attention, x, y, mask))


def test_a_context_of_padding_alone_gives_zeros_and_finite_gradients() -> None:
    attention, x, y = build(), context(tokens=4).requires_grad_(), context(seed=1).requires_grad_()
    mask = torch.tensor([[True] * 5, [False] * 5, [True] * 5])
    out = attend(attention, x, y, mask)
    assert not out[1].any() and out[0].any()
    out.square().sum().backward()
    grads = [p.grad for p in attention.parameters()] + [x.grad, y.grad]
    assert all(g is not None and g.isfinite().all() for g in grads)
    assert y.grad is not None and not y.grad[1].any()


def test_large_inputs_do_not_sharpen_it() -> None:
    """Queries and keys are normed: only their direction counts."""
    attention, x, y = build(), context(tokens=4), context(seed=1)
    mask = torch.ones(3, 5, dtype=torch.bool)
    for projection in (attention.q_proj, attention.k_proj):
        torch.nn.init.zeros_(projection.bias)
    once = attend(attention, x, y, mask)
    with torch.no_grad():
        attention.q_proj.weight.mul_(1e3)
    torch.testing.assert_close(attend(attention, x, y, mask), once, rtol=1e-4, atol=1e-5)


def test_bf16_stays_near_fp32() -> None:
    attention, x, y = build(), context(tokens=4), context(seed=1)
    mask = torch.ones(3, 5, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        half = attend(attention, x, y, mask)
    torch.testing.assert_close(half.float(), attend(attention, x, y, mask), rtol=0.1, atol=0.02)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 12 is not a multiple of heads 5"):
        Attention(12, 5)


def test_heads_learn_how_strongly_they_attend_to_marked_tokens() -> None:
    """Nothing at first; then the formula with a bias on the marked keys, its gradient too, beside rows of padding."""
    attention, x, y = build(), context(tokens=4), context(seed=1)
    mask = torch.arange(5) < torch.tensor([[5], [3], [0]])
    term_mask = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0]]).bool()
    plain = attend(attention, x, y, mask)
    attention.add_term_bias()
    torch.testing.assert_close(attend(attention, x, y, mask, term_mask), plain)
    assert attention.term_bias is not None
    attention.term_bias.data = torch.tensor([1.0, -0.5, 90.0])
    found = attend(attention, x, y, mask, term_mask)

    def heads(projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(2, (3, 4)).transpose(1, 2)

    q, k = (rms_norm(heads(f(z)), (4,)) for f, z in ((attention.q_proj, x), (attention.k_proj, y)))
    bias = (4 * torch.tanh(attention.term_bias / 4))[:, None, None] * term_mask[:, None, None]
    logits = (q @ k.transpose(2, 3) / math.sqrt(4) + bias).masked_fill(~mask[:, None, None], float("-inf"))
    weights = logits[:2].softmax(-1)
    expected = attention.out_proj((weights @ heads(attention.v_proj(y))[:2]).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found[:2], expected)
    assert (found[2] == 0).all()
    gradients = [torch.autograd.grad(v.square().sum(), attention.term_bias)[0] for v in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_no_strength_hides_what_is_not_marked() -> None:
    """A head that wants nothing but terms still gives the others a share of e^-4 for each."""
    attention = build(width=1, heads=1)
    attention.add_term_bias()
    attention.term_bias.data.fill_(1e9)  # type: ignore[union-attr]
    for layer, weight in ((attention.q_proj, 0.0), (attention.v_proj, 1.0), (attention.out_proj, 1.0)):
        torch.nn.init.constant_(layer.weight, weight)
        torch.nn.init.zeros_(layer.bias)
    values = torch.tensor([[[0.0], [1.0]]])
    seen = attend(attention, values, values, torch.ones(1, 2).bool(), torch.tensor([[True, False]]))
    torch.testing.assert_close(seen[0, 0, 0], torch.tensor(math.exp(-4) / (1 + math.exp(-4))))
