"""Hard negatives are wrong, similar and random; the matching loss knows nothing at zero."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.matching import hard_negatives, matching_loss


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=9).filter(lambda ids: len(set(ids)) > 1), st.integers(0, 99))
def test_an_equal_id_is_never_drawn(values: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    ids = torch.tensor(values)
    wrong = hard_negatives(torch.rand(len(ids), len(ids)), ids, 10.0)
    assert (ids[wrong.columns] != ids).all() and (ids[wrong.rows] != ids).all()
    assert wrong.of_row.all() and wrong.of_column.all()


def test_similar_negatives_are_preferred() -> None:
    torch.manual_seed(0)
    ids, similarity = torch.arange(20), torch.zeros(20, 20)
    similarity[:, 7], similarity[3, :] = 0.9, 0.8
    wrong = hard_negatives(similarity, ids, 20.0)
    others = ids != 7
    assert (wrong.columns[others & (ids != 3)] == 7).all()  # exp(18) to 1
    assert (wrong.rows[(ids != 3) & others] == 3).all()


def test_without_a_scale_all_wrong_partners_are_alike() -> None:
    torch.manual_seed(0)
    ids = torch.arange(5)
    drawn = torch.stack([hard_negatives(torch.rand(5, 5), ids, 0.0).columns for _ in range(400)])
    counts = torch.stack([(drawn[:, 0] == k).float().mean() for k in range(5)])
    assert counts[0] == 0 and (counts[1:] - 0.25).abs().max() < 0.1


def test_who_has_no_negative_says_so() -> None:
    """Rows 0 and 1 are of one image, row 2 of another, row 3 may not be drawn: 2 alone is wrong for 0 and 1."""
    ids, real = torch.tensor([5, 5, 6, 7]), torch.tensor([True, True, True, False])
    wrong = hard_negatives(torch.rand(4, 4), ids, 1.0, real=real)
    assert wrong.columns[:2].tolist() == wrong.rows[:2].tolist() == [2, 2]
    assert wrong.of_row.tolist() == wrong.of_column.tolist() == real.tolist()
    alone = hard_negatives(torch.eye(3), torch.tensor([5, 5, 5]), 1.0)
    assert not alone.of_row.any() and not alone.of_column.any()


def test_logits_that_do_not_count_cost_nothing() -> None:
    positive, negative = torch.tensor([0.3, 50.0]), torch.tensor([-0.2, -50.0, 1.0, 1.0])
    real = torch.tensor([True, False, True, False, False, True])
    expected = matching_loss(positive[:1], negative[[0, 3]])
    torch.testing.assert_close(matching_loss(positive, negative, real), expected)
    assert matching_loss(positive, negative, torch.zeros(6, dtype=torch.bool)) == 0


def test_zero_logits_cost_log_two_whatever_their_number() -> None:
    assert matching_loss(torch.zeros(3), torch.zeros(11)).item() == pytest.approx(math.log(2))


def test_being_sure_and_right_costs_nothing() -> None:
    assert matching_loss(torch.full((3,), 50.0), torch.full((6,), -50.0)).item() == pytest.approx(0, abs=1e-6)
    assert matching_loss(torch.full((3,), -50.0), torch.full((6,), -50.0)).item() == pytest.approx(25, abs=1e-4)
