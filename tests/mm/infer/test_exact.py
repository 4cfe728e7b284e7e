"""Exact search finds what sorting all scores finds, however it is cut into blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm.infer import exact
from mm.infer.exact import nearest


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), queries=st.integers(1, 4), k=st.integers(1, 50), scores=st.integers(1, 200))
def test_it_is_what_sorting_finds(count: int, queries: int, k: int, scores: int) -> None:
    random = torch.Generator().manual_seed(count)
    vectors = torch.randn(count, 5, generator=random)
    asked = torch.randn(queries, 5, generator=random)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "SCORES", scores)
        found, places = nearest(vectors, asked, k)
    expected, order = (asked @ vectors.T).sort(dim=1, descending=True)
    assert torch.equal(places, order[:, :k])
    torch.testing.assert_close(found, expected[:, :k])


def test_of_equal_scores_the_earlier_is_first() -> None:
    vectors = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    _, places = nearest(vectors, torch.tensor([[1.0, 0.0]]), 4)
    assert places.tolist() == [[1, 2, 3, 0]]


def test_what_cannot_be_found_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        nearest(torch.zeros(3, 2), torch.zeros(1, 2), 0)
    with pytest.raises(ValueError, match="width 3 among vectors of width 2"):
        nearest(torch.zeros(3, 2), torch.zeros(1, 3), 1)
