"""Codes as bytes and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm.infer.packed_codes import bits_of, pack_codes, unpack_codes


@given(size=st.integers(1, 70_000), shape=st.tuples(*[st.integers(1, 5)] * 3), seed=st.integers(0, 99))
def test_codes_come_back_from_as_many_bits_as_they_need(size: int, shape: tuple[int, int, int], seed: int) -> None:
    codes = torch.randint(size, shape, generator=torch.Generator().manual_seed(seed))
    packed = pack_codes(codes, size)
    _, tokens, depth = shape
    assert packed.shape == (shape[0], -(-tokens * depth * bits_of(size) // 8))
    assert 2 ** bits_of(size) >= size > 2 ** (bits_of(size) - 1) or size == 1
    torch.testing.assert_close(unpack_codes(packed, tokens, depth, size), codes)


@pytest.mark.parametrize("code", [-1, 16])
def test_padding_and_codes_of_a_larger_book_are_not_packed(code: int) -> None:
    with pytest.raises(ValueError, match="codebook of 16"):
        pack_codes(torch.full((1, 2, 1), code), 16)
