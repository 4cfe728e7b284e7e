# mypy: allow-untyped-defs
"""Nearest codebook entry on CUDA: a program holds a block of vectors and runs over the codes, keeping best score and
index.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.nearest_code.cpu import ranking

VECTORS = 64
"""Rows of a tile."""
CODES = 64
"""Columns of a tile."""


def nearest_code(z: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """z (N, C), codebook (S, C) -> (N,) int64; scores in float32 whatever the input."""
    codes, bias = ranking(codebook, metric)
    z = z.to(codes.dtype).contiguous()
    codes = codes.contiguous()
    indices = torch.empty(z.shape[0], dtype=torch.int64, device=z.device)
    if z.shape[0]:
        chunk = min(64, max(16, triton.next_power_of_2(z.shape[1])))
        grid = (triton.cdiv(z.shape[0], VECTORS),)
        _nearest[grid](z, codes, bias, indices, *z.shape, codes.shape[0], VECTORS, CODES, chunk)
    return indices


@triton.jit
def _nearest(z, codes, bias, indices, n, width, size, VECTORS: tl.constexpr, CODES: tl.constexpr, CHUNK: tl.constexpr):
    row = tl.program_id(0) * VECTORS + tl.arange(0, VECTORS)
    best = tl.full((VECTORS,), float("-inf"), tl.float32)
    chosen = tl.zeros((VECTORS,), tl.int32)
    for start in range(0, size, CODES):
        code = start + tl.arange(0, CODES)
        score = tl.zeros((VECTORS, CODES), tl.float32)
        for left in range(0, width, CHUNK):
            c = left + tl.arange(0, CHUNK)
            inside = (c < width)[None, :]
            zs = tl.load(z + row.to(tl.int64)[:, None] * width + c[None, :], (row < n)[:, None] & inside, 0.0)
            cs = tl.load(codes + code.to(tl.int64)[:, None] * width + c[None, :], (code < size)[:, None] & inside, 0.0)
            score = tl.dot(zs, tl.trans(cs), score, input_precision="ieee")
        score += tl.load(bias + code, code < size, float("-inf"))[None, :]
        top, where = tl.max(score, 1, return_indices=True)
        better = top > best  # strictly: of equal scores the first code wins
        best = tl.where(better, top, best)
        chosen = tl.where(better, start + where, chosen)
    tl.store(indices + row, chosen.to(tl.int64), row < n)
