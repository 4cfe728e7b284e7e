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
    columns, rows = hard_negatives(torch.rand(len(ids), len(ids)), ids, 10.0)
    assert (ids[columns] != ids).all() and (ids[rows] != ids).all()


def test_similar_negatives_are_preferred() -> None:
    torch.manual_seed(0)
    ids, similarity = torch.arange(20), torch.zeros(20, 20)
    similarity[:, 7], similarity[3, :] = 0.9, 0.8
    columns, rows = hard_negatives(similarity, ids, 20.0)
    others = ids != 7
    assert (columns[others & (ids != 3)] == 7).all()  # exp(18) to 1
    assert (rows[(ids != 3) & others] == 3).all()


def test_without_a_scale_all_wrong_partners_are_alike() -> None:
    torch.manual_seed(0)
    ids = torch.arange(5)
    drawn = torch.stack([hard_negatives(torch.rand(5, 5), ids, 0.0)[0] for _ in range(400)])
    counts = torch.stack([(drawn[:, 0] == k).float().mean() for k in range(5)])
    assert counts[0] == 0 and (counts[1:] - 0.25).abs().max() < 0.1


def test_a_batch_of_one_image_has_no_negative() -> None:
    with pytest.raises(ValueError, match="larger batch"):
        hard_negatives(torch.eye(3), torch.tensor([5, 5, 5]), 1.0)


def test_zero_logits_cost_log_two_whatever_their_number() -> None:
    assert matching_loss(torch.zeros(3), torch.zeros(11)).item() == pytest.approx(math.log(2))


def test_being_sure_and_right_costs_nothing() -> None:
    assert matching_loss(torch.full((3,), 50.0), torch.full((6,), -50.0)).item() == pytest.approx(0, abs=1e-6)
    assert matching_loss(torch.full((3,), -50.0), torch.full((6,), -50.0)).item() == pytest.approx(25, abs=1e-4)
