"""Codes as bytes: each in as many bits as its codebook needs, one sample after another."""

import numpy as np
import torch
from torch import Tensor


def bits_of(size: int) -> int:
    """Bits of one code of a codebook of `size`."""
    return max(1, (size - 1).bit_length())


def pack_codes(codes: Tensor, size: int) -> np.ndarray:
    """Pack the codes of samples that all have the same number of tokens.

    Args:
        codes: (N, T, Q) int64 in 0..size-1.
        size: of the codebook.

    Returns:
        (N, B) uint8, B = ceil(T · Q · bits / 8).

    Raises:
        ValueError: a code is padding, or none of the codebook's.
    """
    flat = codes.flatten(1).numpy()
    if flat.size and (flat.min() < 0 or flat.max() >= size):
        raise ValueError(f"codes from {flat.min()} to {flat.max()}: packed are those of a codebook of {size}")
    places = np.arange(bits_of(size))
    bits = (flat[..., None] >> places) & 1
    return np.packbits(bits.reshape(len(flat), -1).astype(np.uint8), axis=1)


def unpack_codes(packed: np.ndarray, tokens: int, depth: int, size: int) -> Tensor:
    """The codes of `pack_codes`.

    Args:
        packed: (N, B) uint8.
        tokens: T.
        depth: Q, codes per token.
        size: of the codebook.

    Returns:
        (N, T, Q) int64.
    """
    width = bits_of(size)
    bits = np.unpackbits(packed, axis=1, count=tokens * depth * width)
    codes = (bits.reshape(-1, tokens, depth, width).astype(np.int64) << np.arange(width)).sum(-1)
    return torch.from_numpy(codes)
