"""Inner products of vectors, exact to the bit at any tiling, and vectors as they read them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from kernels.errors import UserError

PAD = 64
"""Tiles are padded to a multiple of this: the same product at another shape would round otherwise."""
LARGEST_EXPONENT = 40
"""Of two, of the numbers of vectors whose inner products float32 holds with room for their width."""
LARGEST_POWER = 1000
"""Of two, that float64 holds with room for what it multiplies."""


def as_vectors(values: Tensor | ArrayLike, name: str) -> Tensor:
    """Vectors as the scores read them.

    Args:
        values: (N, D).
        name: which the errors say.

    Returns:
        (N, D) float32 on its device. Numbers whose products float32 could not hold are divided by a power of two, all
        of them by the same, which leaves every ranking as it is.

    Raises:
        ValueError: when `values` is not a matrix, is empty, or holds NaN or infinity.
    """
    vectors = torch.as_tensor(values).detach()
    if vectors.ndim != 2 or not vectors.numel():
        raise UserError(f"{name} must be a matrix of vectors (N, D) with N and D > 0, not {tuple(vectors.shape)}")
    low, high = vectors.aminmax()
    largest = max(abs(float(low)), abs(float(high)))
    if not math.isfinite(largest):
        broken = ~torch.isfinite(vectors).all(dim=1)
        first = int(broken.nonzero()[0])
        raise UserError(f"{name} holds NaN or infinity (first in vector {first}): the model that made it diverged")
    _, exponent = math.frexp(largest)
    if largest and abs(exponent) > LARGEST_EXPONENT:
        vectors = vectors.double() * 2.0 ** min(-exponent, LARGEST_POWER)
    return vectors.to(torch.float32)


@contextmanager
def exact_matmul(device: str) -> Iterator[None]:
    """fp32 products whatever the surrounding precision settings are, and no graph."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def tile_scores(a: Tensor, b: Tensor) -> Tensor:
    """Inner products, computed at padded shapes (see `PAD`).

    Args:
        a: (R, D).
        b: (C, D).

    Returns:
        (R, C).
    """
    scores = padded(a) @ padded(b).T
    return scores[: a.shape[0], : b.shape[0]]


def padded(vectors: Tensor) -> Tensor:
    """(N, D) with zero rows up to a multiple of `PAD`."""
    missing = -len(vectors) % PAD
    return F.pad(vectors, (0, 0, 0, missing)) if missing else vectors
