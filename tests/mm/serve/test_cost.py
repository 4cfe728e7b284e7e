"""What batches cost is learned from those that ran."""

import numpy as np
import pytest

from mm.serve.cost import CostModel


def test_a_linear_cost_is_found_from_wrong_guesses() -> None:
    model = CostModel(1e-4, 1e-5, 1e-2)
    random = np.random.default_rng(0)
    for _ in range(100):
        items = int(random.integers(1, 17))
        tokens = items * int(random.integers(4, 25))
        model.learn(tokens, items, 1e-5 * tokens + 1.5e-4 * items + 4e-3)
    assert model.seconds(16 * 24, 16) == pytest.approx(1e-5 * 384 + 1.5e-4 * 16 + 4e-3, rel=0.02)
    assert model.seconds(4, 1) == pytest.approx(1e-5 * 4 + 1.5e-4 + 4e-3, rel=0.02)


def test_a_cost_that_changes_is_followed() -> None:
    model = CostModel(1e-5, 1e-4, 1e-3)
    for seconds in [0.004] * 50 + [0.040] * 200:
        model.learn(16, 1, seconds)
    assert model.seconds(16, 1) == pytest.approx(0.040, rel=0.05)


def test_a_larger_batch_is_never_cheaper() -> None:
    """Whatever noise says: two batches, of which the larger took less."""
    model = CostModel(1e-5, 1e-4, 1e-3)
    for _ in range(20):
        model.learn(16, 1, 0.010)
        model.learn(16 * 16, 16, 0.002)
    sizes = [model.seconds(16 * items, items) for items in range(1, 17)]
    assert sizes == sorted(sizes) and sizes[0] > 0
