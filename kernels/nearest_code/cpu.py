"""Nearest codebook entry by blocks of vectors: one product per block, a two-step argmax, memory O(block).

|z - c|² is least where z·c - |c|²/2 is largest, so one product with the bias folded in ranks the codes of either
metric. The largest of S scores is found by folding them into S / FOLD classes with an element-wise maximum, which
vectorises, and looking for the index only within the winning class.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.padding import count_of

ELEMENTS = 2**20
"""Scores per block: 4 MB in float32, within the last-level cache."""
FOLD = 64
"""Scores of a class, of which the largest is found first."""


def nearest_code(z: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """z (N, C), codebook (S, C) -> (N,) int64."""
    codes, bias = ranking(codebook, metric)
    z = z.to(codes.dtype)
    size = codes.shape[0]
    rows = max(1, min(z.shape[0], ELEMENTS // size))
    scores = torch.empty(rows, size, dtype=codes.dtype, device=z.device)
    indices = torch.empty(z.shape[0], dtype=torch.int64, device=z.device)
    for start in range(0, z.shape[0], rows):
        block = z[start : start + rows]
        part = torch.addmm(bias, block, codes.T, out=scores[: block.shape[0]])
        indices[start : start + rows] = _argmax(part)
    return indices


def ranking(codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Codes (S, C) and bias (S,), at least float32, such that z·code + bias is largest at the nearest entry."""
    codes = codebook.to(torch.promote_types(codebook.dtype, torch.float32))
    if metric == "cosine":
        return F.normalize(codes, dim=-1), codes.new_zeros(codes.shape[0])
    return codes, codes.square().sum(-1).mul_(-0.5)


def statistics(z: Tensor, indices: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Vectors per code (S,) and their sums (S, C), float32."""
    sums = torch.zeros(size, z.shape[1], device=z.device).index_add_(0, indices, z.float())
    return count_of(indices, size).float(), sums


def _argmax(scores: Tensor) -> Tensor:
    rows, size = scores.shape
    if size % FOLD or size < 4 * FOLD:
        return scores.argmax(dim=-1)
    folded = scores.view(rows, FOLD, size // FOLD)
    column = folded.amax(dim=1).argmax(dim=-1)
    members = folded.gather(2, column.view(-1, 1, 1).expand(-1, FOLD, 1)).squeeze(2)
    return members.argmax(dim=-1) * (size // FOLD) + column
