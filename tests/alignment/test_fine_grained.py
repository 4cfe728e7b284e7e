"""Late interaction against a plain double loop, and code agreement against its degenerate solution."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from alignment.fine_grained import (
    CodeAgreement,
    LateInteraction,
    dense_info_nce,
    late_interaction,
    paired_late_interaction,
)


def ragged(rows: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Unit tokens (rows, tokens, 6), and masks of every length from 1 up."""
    random = torch.Generator().manual_seed(seed)
    lengths = 1 + torch.arange(rows) % tokens
    x = normalize(torch.randn(rows, tokens, 6, generator=random, dtype=torch.float64), dim=-1).float()
    return x, torch.arange(tokens) < lengths[:, None]


def one_pair(x: Tensor, y: Tensor) -> float:
    """FILIP's definition for two lists of tokens."""
    forward = sum(max(float(u @ v) for v in y) for u in x) / len(x)
    backward = sum(max(float(u @ v) for u in x) for v in y) / len(y)
    return (forward + backward) / 2


@pytest.mark.parametrize("block", [2, 32])
def test_late_interaction_equals_a_double_loop(block: int) -> None:
    (a, mask_a), (b, mask_b) = ragged(5, 4, 0), ragged(7, 3, 1)
    expected = [[one_pair(x[m], y[n]) for y, n in zip(b, mask_b, strict=True)] for x, m in zip(a, mask_a, strict=True)]
    torch.testing.assert_close(late_interaction(a, mask_a, b, mask_b, block), torch.tensor(expected))


def test_paired_is_the_diagonal() -> None:
    (a, mask_a), (b, mask_b) = ragged(6, 4, 0), ragged(6, 5, 1)
    torch.testing.assert_close(
        paired_late_interaction(a, mask_a, b, mask_b), late_interaction(a, mask_a, b, mask_b).diagonal()
    )


def test_blocks_change_neither_value_nor_gradient() -> None:
    (a, mask_a), (b, mask_b) = ragged(5, 4, 0), ragged(5, 3, 1)
    found = []
    for block in (2, 5):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        late_interaction(x, mask_a, y, mask_b, block).square().sum().backward()
        found.append((x.grad, y.grad))
    torch.testing.assert_close(found[0], found[1])


def plain(a: Tensor, mask_a: Tensor, b: Tensor, mask_b: Tensor) -> Tensor:
    """The definition, differentiated by autograd through every similarity."""
    similarity = torch.einsum("nsd,mtd->nsmt", a, b)
    best_b = similarity.masked_fill(~mask_b, -1).amax(3) * mask_a[..., None]
    best_a = similarity.masked_fill(~mask_a[..., None, None], -1).amax(1) * mask_b
    count_a, count_b = (mask.sum(1).clamp(min=1) for mask in (mask_a, mask_b))
    return (best_b.sum(1) / count_a[:, None] + best_a.sum(2) / count_b) / 2


@pytest.mark.parametrize("block", [1, 3, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_late_interaction_has_the_gradient_of_its_definition(block: int, dtype: torch.dtype) -> None:
    (a, mask_a), (b, mask_b) = ragged(5, 4, 0), ragged(7, 3, 1)
    mask_a[1], mask_b[2] = False, False  # a sample without tokens
    found = []
    for function in (plain, lambda *sides: late_interaction(*sides, block)):
        x, y = a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()
        value = function(x, mask_a, y, mask_b)
        value.square().sum().backward()
        found.append((value.detach().to(dtype), x.grad, y.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_late_interaction_computes_in_the_dtype_of_autocast() -> None:
    (a, mask_a), (b, mask_b) = ragged(5, 4, 0), ragged(7, 3, 1)
    expected = late_interaction(a, mask_a, b, mask_b)
    a.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = late_interaction(a, mask_a, b, mask_b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    assert not torch.equal(found, expected)
    found.sum().backward()
    assert a.grad is not None and a.grad.dtype == torch.float32


def test_late_interaction_keeps_no_similarities() -> None:
    """What autograd saves grows with N·M·(S + T), not with N·M·S·T."""
    (a, mask_a), (b, mask_b) = ragged(16, 20, 0), ragged(16, 20, 1)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.nbytes) or x, lambda x: x):
        late_interaction(a.requires_grad_(), mask_a, b, mask_b)
    assert sum(saved) < 4 * 16 * 16 * 20 * 20 / 2


def test_padding_changes_nothing() -> None:
    (a, mask_a), (b, mask_b) = ragged(5, 4, 0), ragged(5, 3, 1)
    longer = torch.cat([a, torch.ones(5, 2, 6)], 1), torch.cat([mask_a, torch.zeros(5, 2, dtype=torch.bool)], 1)
    torch.testing.assert_close(late_interaction(*longer, b, mask_b), late_interaction(a, mask_a, b, mask_b))
    paired = paired_late_interaction(a, mask_a, b, mask_b)
    torch.testing.assert_close(paired_late_interaction(*longer, b, mask_b), paired)
    agreement = CodeAgreement(8, 6)
    torch.testing.assert_close(agreement.distribution(*longer), agreement.distribution(a, mask_a))


def agree(agreement: CodeAgreement, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], ids: Tensor) -> Tensor:
    """The term of tokens and mask of either side."""
    return agreement(agreement.distribution(*a), agreement.distribution(*b), ids)


def test_a_sample_agrees_with_itself_perfectly() -> None:
    a, mask = ragged(6, 4, 0)
    torch.testing.assert_close(paired_late_interaction(a, mask, a, mask), torch.ones(6))
    assert LateInteraction(0.01)(a, mask, a, mask, torch.arange(6)) < 0.01


def test_the_temperature_is_of_one_dimension_and_the_loss_of_none() -> None:
    a, mask = ragged(6, 4, 0)
    loss = LateInteraction(0.25)
    assert loss.log_scale.shape == (1,) and loss.scale.shape == () and loss.scale.item() == pytest.approx(4)
    assert loss(a, mask, a, mask, torch.arange(6)).shape == ()


def test_given_logits_are_added_to_scaled_similarities() -> None:
    (a, mask_a), (b, mask_b) = ragged(5, 4, 0), ragged(5, 3, 1)
    term = LateInteraction(0.25)
    logits = torch.randn(5, 5)  # fewer than a shortlist: all of them are told apart
    expected = dense_info_nce(4 * late_interaction(a, mask_a, b, mask_b) + logits, torch.arange(5))
    torch.testing.assert_close(term(a, mask_a, b, mask_b, torch.arange(5), logits=logits), expected)
    real = torch.tensor([True, True, False, True, True])
    some = [x[real] for x in (a, mask_a, b, mask_b)]
    expected = term(*some, torch.arange(4), logits=logits[real][:, real])
    found = term(a, mask_a, b, mask_b, torch.arange(5), real, logits)
    torch.testing.assert_close(found, expected)
    # Where the logits have told all pairs already, nothing is left to learn.
    assert term(a, mask_a, b, mask_b, torch.arange(5), logits=50 * torch.eye(5)) < 1e-6


def test_equal_ids_are_not_negatives() -> None:
    """Two rows that cannot be told apart cost log 2 each, unless they are the same image."""
    logits = torch.tensor([[9.0, 9.0, -9.0], [9.0, 9.0, -9.0], [-9.0, -9.0, 9.0]])
    assert dense_info_nce(logits, torch.arange(3)).item() == pytest.approx(2 * math.log(2) / 3, abs=1e-4)
    assert dense_info_nce(logits, torch.tensor([4, 4, 7])).item() == pytest.approx(0, abs=1e-4)


def test_a_distribution_over_codes_sums_to_one() -> None:
    a, mask = ragged(6, 4, 0)
    torch.testing.assert_close(CodeAgreement(8, 6).distribution(a, mask).sum(1), torch.ones(6))


def test_collapse_does_not_win_code_agreement() -> None:
    """All tokens on one code agree perfectly, and are worth no more than chance; telling samples apart is."""
    agreement, ids = CodeAgreement(8, 6), torch.arange(6)
    mask = torch.ones(6, 1, dtype=torch.bool)
    collapsed = agreement.codebook[:1].detach().expand(6, 6)[:, None]
    collapsed = normalize(collapsed, dim=-1)
    apart = normalize(agreement.codebook.detach(), dim=-1)[:6, None]
    chance = math.log(6)
    assert agree(agreement, (collapsed, mask), (collapsed, mask), ids).item() == pytest.approx(chance, abs=1e-4)
    assert agree(agreement, (apart, mask), (apart, mask), ids).item() < 0.5 * chance
    assert agree(agreement, (apart, mask), (apart.roll(1, 0), mask), ids).item() > chance


def test_code_agreement_is_of_float32_under_autocast() -> None:
    (a, mask_a), (b, mask_b) = ragged(6, 4, 0), ragged(6, 3, 1)
    agreement = CodeAgreement(8, 6)
    found = []
    for reduced in (False, True):
        agreement.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            value = agree(agreement, (a, mask_a), (b, mask_b), torch.arange(6))
        value.backward()
        assert agreement.codebook.grad is not None
        found.append((value.detach(), agreement.codebook.grad.clone()))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_the_shared_codebook_learns_from_both_sides() -> None:
    (a, mask_a), (b, mask_b) = ragged(6, 4, 0), ragged(6, 3, 1)
    a.requires_grad_(), b.requires_grad_()
    agreement = CodeAgreement(8, 6)
    agree(agreement, (a, mask_a), (b, mask_b), torch.arange(6)).backward()
    for leaf in (a, b, agreement.codebook):
        assert leaf.grad is not None and leaf.grad.abs().sum() > 0
