"""The definition of the nearest codebook entry: all distances in one matrix, in float32."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest_code(z: Tensor, codebook: Tensor, metric: str = "euclidean") -> Tensor:
    """argmin_s |z_n - c_s|² or argmax_s cos(z_n, c_s): z (N, C), codebook (S, C) -> (N,) int64."""
    z = _at_least_float32(z)
    codebook = _at_least_float32(codebook)
    if metric == "cosine":
        similarity = F.normalize(z, dim=-1) @ F.normalize(codebook, dim=-1).T
        return similarity.argmax(dim=-1)
    distance = codebook.square().sum(-1) - 2 * z @ codebook.T
    return distance.argmin(dim=-1)


def assign(z: Tensor, codebook: Tensor, metric: str = "euclidean") -> tuple[Tensor, Tensor, Tensor]:
    """-> (indices (N,), number of vectors per code (S,) float32, their sum (S, C) float32)."""
    indices = nearest_code(z, codebook, metric)
    one_hot = F.one_hot(indices, codebook.shape[0]).float()
    return indices, one_hot.sum(0), one_hot.T @ z.float()


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
