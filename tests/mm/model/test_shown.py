"""What a step shows the backbone: a share of the real tokens, of which the others do not count."""

from dataclasses import replace

import pytest
import torch

from encoders import EncoderOutput, Features
from mm.model.shown import own_uniform, rows_with_codes, some_tokens

REAL = (10, 4, 1, 0)
"""Tokens of each row that are real."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def encoded() -> EncoderOutput:
    """Four rows of ten tokens, whose numbers say where they stood."""
    mask = torch.arange(10) < torch.tensor(REAL)[:, None]
    place = torch.arange(10).expand(4, -1)
    tokens = place[..., None].repeat(1, 1, 3).float()
    codes = torch.where(mask, place, -1)[..., None]
    return EncoderOutput(
        tokens, codes, mask, torch.randn(4, 5), term_mask=place == 2, features=Features(10 * tokens, mask)
    )


def test_every_row_keeps_its_share_of_real_tokens_and_no_padding_counts(encoded: EncoderOutput) -> None:
    found = some_tokens(encoded, 0.5, generator())
    assert found.tokens.shape == (4, 5, 3) and found.codes.shape == (4, 5, 1)
    assert found.mask.sum(1).tolist() == [5, 2, 1, 0]  # half of each, rounded up
    for row, real in enumerate(REAL):
        kept = found.tokens[row, found.mask[row], 0]
        assert len(kept.unique()) == len(kept) and (kept < real).all()
        assert torch.equal(found.codes[row, found.mask[row], 0], kept.long())
        assert (found.codes[row, ~found.mask[row]] == -1).all()
    assert found.term_mask is not None and torch.equal(found.term_mask, found.tokens[..., 0] == 2)
    assert torch.equal(found.summary, encoded.summary)
    assert found.features is not None and torch.equal(found.features.tokens, 10 * found.tokens)
    assert torch.equal(found.features.mask, found.mask)


def test_a_token_that_is_left_out_has_no_gradient_and_changes_nothing(encoded: EncoderOutput) -> None:
    tokens = encoded.tokens.clone().requires_grad_()
    found = some_tokens(replace(encoded, tokens=tokens), 0.5, generator())
    (found.tokens * found.mask[..., None]).sum().backward()
    assert tokens.grad is not None
    for row in range(4):
        kept = found.tokens[row, found.mask[row], 0].long()
        assert sorted(kept.tolist()) == tokens.grad[row, :, 0].nonzero().flatten().tolist()


def test_prefix_tokens_stay(encoded: EncoderOutput) -> None:
    for seed in range(5):
        found = some_tokens(encoded, 0.3, generator(seed), prefix=2)
        assert {0.0, 1.0} <= set(found.tokens[0, found.mask[0], 0].tolist())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_tokens_or_none_are_what_there_was_and_nothing_is_drawn(encoded: EncoderOutput, share: float) -> None:
    draws = generator()
    assert some_tokens(encoded, share, draws) is encoded
    assert torch.equal(draws.get_state(), generator().get_state())


def test_draws_depend_on_the_generator_and_reach_every_token(encoded: EncoderOutput) -> None:
    first, again = (some_tokens(encoded, 0.5, generator(3)).tokens for _ in range(2))
    assert torch.equal(first, again)
    seen = {
        place for seed in range(20) for place in some_tokens(encoded, 0.5, generator(seed)).tokens[0, :, 0].tolist()
    }
    assert seen == set(range(10))


def test_a_share_of_the_rows_shows_its_codes() -> None:
    counts = [rows_with_codes(1000, torch.tensor(share), generator()).sum().item() for share in (0.0, 0.25, 1.0)]
    assert counts[0] == 0 and counts[2] == 1000
    assert 200 < counts[1] < 300


def test_alone_a_rank_has_all_numbers() -> None:
    drawn = torch.rand(3, 2, generator=generator())
    assert torch.equal(own_uniform((3, 2), generator(), torch.device("cpu")), drawn)
