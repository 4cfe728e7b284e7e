"""What the operations on CUDA share without Triton."""

from typing import NamedTuple

from torch import Tensor


class Layout(NamedTuple):
    """Where assignments are computed: R = N K rows in order of expert, row r for assignment ``order[r]`` of the N K,
    hence for token ``order[r] // K``.
    """

    order: Tensor  # (R,) int32
    slot_of: Tensor  # (N, K) int32, the row of every assignment
    ends: Tensor  # (E,) int32, one past the last row of every expert
