"""Counts of what scores higher and what ties, beside counting one by one."""

import numpy as np
import pytest
import torch
from torch import Tensor

from eval import ranks
from eval.ranks import Counts, count_pairs


def one_by_one(scores: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, ...]:
    own = scores[pairs[:, 0], pairs[:, 1]][:, None]
    of_row, of_column = scores[pairs[:, 0]], scores[:, pairs[:, 1]].T
    return tuple(compared.sum(1) for side in (of_row, of_column) for compared in (side > own, side == own))


def found(counts: Counts) -> tuple[np.ndarray, ...]:
    assert counts.by_column is not None
    sides = (counts.by_row, counts.by_column)
    return tuple(part.sum(1) for side in sides for part in (side.greater, side.tied))


def whole_numbers(count: int, seed: int) -> Tensor:
    """Vectors whose inner products are exact, and often equal."""
    return torch.randint(-2, 3, (count, 4), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize(("rows", "columns"), [(700, 9), (9, 700), (40, 60)])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_count_what_one_would(
    rows: int, columns: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than a byte counts, blocks that do not divide them, pairs that fill some slots and not others."""
    a, b = whole_numbers(rows, 0), whole_numbers(columns, 1)
    every = np.stack(np.divmod(np.arange(rows * columns), columns), 1)
    pairs = np.random.default_rng(2).permutation(every)[: rows * columns // 3]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for cached in (ranks.CACHED, 2000):
        monkeypatch.setattr(ranks, "CACHED", cached)
        expected = one_by_one((a @ b.T).numpy(), pairs)
        for value, wanted in zip(found(count_pairs(a, b, pairs)), expected, strict=True):
            assert (value == wanted).all()


def test_equal_vectors_tie_with_all_of_a_large_gallery() -> None:
    a = torch.ones(1000, 4)
    counts = count_pairs(a, a[:7], np.array([[3, 2]]))
    greater, tied, above, level = found(counts)
    assert (greater.item(), tied.item(), above.item(), level.item()) == (0, 7, 0, 1000)
