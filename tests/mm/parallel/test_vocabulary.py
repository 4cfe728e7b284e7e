"""Processes that divide a vocabulary find the loss, gradients and logits of one that has all of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kernels.collectives import all_ranks, divide_samples
from kernels.cross_entropy import OutputProjection
from kernels.errors import UserError
from mm.bench.processes import on_processes
from mm.parallel.vocabulary import DividedOutputProjection

TOKENS, WORDS = 6, 5


def found(projection: OutputProjection) -> list[Tensor]:
    """Loss, gradients of tokens and of a table that is whole on each, and logits."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, 3, generator=random).requires_grad_()
    table = nn.Parameter(torch.randn(WORDS, 3, generator=random))
    labels = torch.tensor([0, 1, 2, 3, 4, 4])
    real = torch.tensor([True, True, True, True, True, False])
    loss = projection.cross_entropy(x, table, labels, real)
    (3 * loss).backward()
    assert x.grad is not None and table.grad is not None
    return [loss.detach(), x.grad, table.grad, projection.logits(x.detach().view(2, 3, 3), table).detach()]


def of_a_rank(rank: int, folder: Path) -> None:
    divide_samples(torch.distributed.new_group([rank], use_local_synchronization=True))
    projection = DividedOutputProjection(all_ranks())
    with pytest.raises(UserError, match="tp2 divides a vocabulary of 1 tokens"):
        projection.logits(torch.zeros(1, 3), torch.zeros(1, 3))
    torch.save(found(projection), folder / f"{rank}.pt")


def test_a_divided_vocabulary_is_a_whole_one(tmp_path: Path) -> None:
    on_processes(2, of_a_rank, (), tmp_path, 100)
    expected = found(OutputProjection())
    assert expected[3].shape == (2, 3, WORDS)
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), expected)
