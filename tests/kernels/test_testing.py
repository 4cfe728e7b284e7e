"""An implementation that returns no numbers agrees with nothing."""

import math

import torch

from kernels.testing import relative_error


def test_a_value_that_is_no_number_is_an_infinite_error() -> None:
    """The largest of several errors passes over NaN."""
    ones = torch.ones(3)
    none = torch.tensor([1, math.nan, 1])
    assert max([0.1, math.nan]) == 0.1
    assert relative_error(ones, ones) == 0
    assert max(relative_error(ones, ones), relative_error(none, ones)) == math.inf
