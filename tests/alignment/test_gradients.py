"""Where two groups of gradients meet, by hand: in the plane, where a right angle and a conflict can be seen."""

from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.gradients import fork, merged


def handed_on(merge: Any, first: list[float], second: list[float]) -> Tensor:
    """The gradient of x, of which one group wants `first` and the other `second`."""
    x = torch.ones(2, requires_grad=True)
    a, b = fork(x, merge)
    total = (a * torch.tensor(first)).sum()
    if b.requires_grad:
        total = total + (b * torch.tensor(second)).sum()
    total.backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize(
    ("merge", "first", "second", "expected"),
    [
        ("sum", [1, 0], [-3, 4], [-2, 4]),
        ("apart", [1, 0], [-3, 4], [1, 0]),
        ("balanced", [1, 0], [-3, 4], [0.4, 0.8]),  # the second is 5 long: a fifth of it
        ("balanced", [10, 0], [-3, 4], [7, 4]),  # and where it is the shorter one all of it
        ("balanced", [0, 0], [-3, 4], [0, 0]),
        ("balanced", [1, 0], [0, 0], [1, 0]),
        ("projected", [1, 0], [-3, 4], [0.64 + 0, 0.48 + 4]),  # each without what lies along the other
        ("projected", [1, 0], [3, 4], [4, 4]),  # no conflict: the sum
        ("projected", [1, 0], [0, 0], [1, 0]),
        ("projected", [1, 0], [-1, 0], [0, 0]),
    ],
)
def test_gradients_meet(merge: Any, first: list[float], second: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(handed_on(merge, first, second), torch.tensor(expected, dtype=torch.float32))


def test_both_groups_read_the_same() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    for merge in ("sum", "apart", "balanced", "projected"):
        a, b = fork(x, merge)  # type: ignore[arg-type]
        assert torch.equal(a, x) and torch.equal(b, x)


def test_lengths_are_measured_in_float32() -> None:
    """The squares of these numbers are beyond half precision's largest."""
    long = torch.tensor([300.0, 0.0], dtype=torch.float16)
    found = merged(long, -2 * long, "balanced")
    assert found.dtype == torch.float16 and found.tolist() == [0, 0]
