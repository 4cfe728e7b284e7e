"""The bench of writing times what it says, and its limit counts the weights that a token needs."""

import pytest
import torch

from mm.bench.generation import (
    GenerationConfig,
    batch_rows,
    length_row,
    random_writer,
    timed,
    touched_bytes,
    writing_parameters,
)
from mm.model.writer import Writer

TINY = GenerationConfig(width=16, layers=2, hidden=8, vocabulary=64, tokens=3, lengths=(16,), repeats=1, peer=False)


@pytest.fixture(scope="module")
def writer() -> Writer:
    torch.manual_seed(0)
    return random_writer(TINY)


def test_touched_are_the_weights_of_a_token_and_eight_of_128_experts(writer: Writer) -> None:
    matrices = 0
    for block in writer.blocks:
        for projection in (getattr(block.self_attention, f"{name}_proj") for name in ("q", "k", "v", "out")):
            matrices += projection.weight.numel()
        matrices += block.moe.router.affinity.numel()
        matrices += (block.moe.w_in.numel() + block.moe.w_out.numel()) * 8 // 128
    table = TINY.vocabulary * TINY.width
    assert touched_bytes(TINY) == 4 * (matrices + table)
    assert writing_parameters(writer) > touched_bytes(TINY) // 4


def test_rates_and_lengths_are_measured(writer: Writer) -> None:
    row = batch_rows(TINY, writer, 2)
    assert row["sequences"] == 2 and row["tokens_a_second"]["ours"] > 0
    length = length_row(TINY, writer, 16)
    assert length["length"] == 16 and length["kept"] > 0 and length["anew"] > 0


def test_what_is_timed_is_interleaved_after_a_warm_up() -> None:
    called: list[str] = []
    timed({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 2)
    assert called == ["a", "b", "a", "b", "a", "b"]
