"""Late interaction with a few columns of each row is what the whole matrix has there; the right ones are chosen."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from alignment.fine_grained import late_interaction
from alignment.shortlist import ROWS, hardest, shortlist_interaction


def ragged(rows: int, tokens: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Unit tokens, and masks of 0 to `tokens` real ones."""
    draws = torch.Generator().manual_seed(seed)
    x = normalize(torch.randn(rows, tokens, 8, generator=draws, dtype=dtype), dim=-1)
    mask = torch.arange(tokens) < torch.randint(0, tokens + 1, (rows, 1), generator=draws)
    return x, mask


@pytest.mark.parametrize("rows", [3, 2 * ROWS + 1])
def test_similarities_and_gradients_are_those_of_the_whole_matrix(rows: int) -> None:
    """A column that stands in several lists learns from all of them; who has no tokens scores zero."""
    (a, mask_a), (b, mask_b) = ragged(rows, 7, 0), ragged(rows + 2, 5, 1)
    columns = torch.stack([torch.randperm(rows + 2)[:3] for _ in range(rows)])
    weight = torch.randn(rows, 3, dtype=a.dtype)
    found = []
    for some in (True, False):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        if some:
            similarity = shortlist_interaction(x, mask_a, y, mask_b, columns)
        else:
            similarity = late_interaction(x, mask_a, y, mask_b).gather(1, columns)
        found.append((similarity, *torch.autograd.grad((similarity * weight).sum(), (x, y))))
    # Similarities are added in float32.
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5, check_dtype=False)
    assert found[0][1].any() and found[0][2].any()


def test_the_hardest_wrong_columns_follow_a_row_s_own() -> None:
    logits = torch.tensor([[0.0, 3, 9, 2], [1, 5, 4, 7], [8, 6, 0, 1], [2, 3, 4, 5]])
    ids = torch.tensor([1, 2, 1, 3])
    columns, found = hardest(logits, ids, 2)
    assert columns.tolist() == [[0, 1], [1, 3], [2, 1], [3, 2]]  # 9 and 8 are of the same image
    assert found.tolist() == [[0, 3], [5, 7], [0, 6], [5, 4]]


def test_columns_that_are_no_negatives_have_no_chance() -> None:
    logits = torch.zeros(3, 3)
    columns, found = hardest(logits, torch.tensor([7, 7, 7]), 16)
    assert columns.shape == (3, 3) and columns[:, 0].tolist() == [0, 1, 2]
    assert found[:, 0].tolist() == [0] * 3 and (found[:, 1:] == float("-inf")).all()
    _, found = hardest(logits, torch.arange(3), 3, torch.tensor([True, True, False]))
    assert found[:2].tolist() == [[0, 0, float("-inf")]] * 2
