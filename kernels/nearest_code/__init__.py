"""Nearest codebook entry, the search inside every vector quantizer (van den Oord et al. 2017, arXiv:1711.00937).

The choice has no gradient; the quantizer's straight-through estimator is its own. `assign` adds the sums from which the
codebook's exponential moving averages are updated (ibid., appendix A.1).
"""

import torch
from torch import Tensor

from kernels.dispatch import choose_path
from kernels.nearest_code import cpu, reference
from kernels.operator import Operator

METRICS = ("euclidean", "cosine")


@torch.no_grad()
def nearest_code(z: Tensor, codebook: Tensor, metric: str = "euclidean") -> Tensor:
    """The index of the codebook entry nearest to every vector: z (N, C), codebook (S, C) -> (N,) int64.

    ``metric`` is ``euclidean`` (least |z - c|²) or ``cosine`` (largest z·c/|c|; neither side need be normalised).
    Scores are float32 at least, whatever the input and autocast; ties and differences below rounding may fall either
    way. Raises ValueError for an unknown metric or for shapes that disagree.
    """
    _check(z, codebook, metric)
    path = choose_path("nearest_code", z)
    if path == "triton":  # whose kernels no autocast changes
        return _search(z, codebook, metric, path)
    with torch.autocast(z.device.type, enabled=False):
        # An engine that executes a graph has no operator of ours.
        if path == "reference" or torch.compiler.is_exporting():
            return reference.nearest_code(z, codebook, metric)
        return _search(z, codebook, metric, path)


@torch.no_grad()
def assign(z: Tensor, codebook: Tensor, metric: str = "euclidean") -> tuple[Tensor, Tensor, Tensor]:
    """The nearest entries and the statistics of an EMA update, without a one-hot matrix.

    z (N, C), codebook (S, C) -> indices (N,) int64, counts (S,) float32 (vectors per code), sums (S, C) float32 (the
    sum of each code's vectors, as given: for spherical codebooks hand in unit vectors). Errors as in `nearest_code`.
    """
    _check(z, codebook, metric)
    path = choose_path("nearest_code", z)
    with torch.autocast(z.device.type, enabled=False):
        if path == "reference":
            return reference.assign(z, codebook, metric)
        indices = _search(z, codebook, metric, path)
        return indices, *cpu.statistics(z, indices, codebook.shape[0])


def _nearest_code(z: Tensor, codebook: Tensor, metric: str, path: str) -> Tensor:
    if path == "triton":
        from kernels.nearest_code import triton_kernel

        return triton_kernel.nearest_code(z, codebook, metric)
    return cpu.nearest_code(z, codebook, metric)


_search = Operator("mm_kernels::nearest_code", _nearest_code)


@_search.register_fake
def _(z: Tensor, codebook: Tensor, metric: str, path: str) -> Tensor:
    return z.new_empty(z.shape[0], dtype=torch.int64)


def _check(z: Tensor, codebook: Tensor, metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; it must be one of {', '.join(METRICS)}")
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1] or codebook.shape[0] == 0:
        shapes = f"z is {tuple(z.shape)} and codebook {tuple(codebook.shape)}"
        raise ValueError(f"{shapes}; they must be (N, C) and (S, C), S > 0")
