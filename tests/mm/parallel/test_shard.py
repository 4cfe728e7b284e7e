"""Processes that divide a run in any way are one: loss terms, gradients, norm, weights, codes, routing, logs."""

import time
from pathlib import Path

import pytest
import torch

from kernels.collectives import all_ranks
from kernels.errors import UserError
from kernels.grouped_mlp import grouped_mlp
from mm.bench.dist import Case, alone, checked
from mm.bench.parity import Found, difference, small_config, take_steps
from mm.bench.processes import on_processes
from mm.parallel.experts import DividedExperts

CASES: list[Case] = [
    ("fsdp2", 5, False),  # which are not divided evenly
    ("fsdp2-ep2", 128, True),
    ("tp2", 8, False),
    ("pp2-vpp2", 8, True),
]
OF_FOUR: list[Case] = [
    ("tp2-pp2", 8, False),
    ("fsdp2-pp2", 5, True),
]
WIDTH = 32


def crowded(rank: int, folder: Path) -> None:
    """Experts of two ranks, all tokens on the first rank, all of them for experts of the first."""
    random = torch.Generator().manual_seed(0)
    w_in, w_out = torch.randn(4, 6, 8, generator=random), torch.randn(4, 8, 3, generator=random)
    x = torch.randn(5, 8, generator=random)[: 5 * (1 - rank)].requires_grad_()
    indices = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0], [0, 1]])[: len(x)]
    weights = torch.full((len(x), 2), 0.5)
    own = slice(2 * rank, 2 * rank + 2)
    mine = [w_in[own].clone().requires_grad_(), w_out[own].clone().requires_grad_()]
    y = DividedExperts(4, all_ranks(), None)(x, *mine, indices, weights)
    y.square().sum().backward()
    gradients = [part.grad for part in mine]
    torch.save([y.detach(), x.grad, *gradients], folder / f"{rank}.pt")
    if rank == 0:
        there = x.detach().requires_grad_()
        whole = [w_in.requires_grad_(), w_out.requires_grad_()]
        z = grouped_mlp(there, *whole, indices, weights)
        z.square().sum().backward()
        torch.save([z.detach(), there.grad, *(part.grad[:2] for part in whole)], folder / "expected.pt")  # type: ignore[index]


# First: processes are forked, and would lack the threads of one that has differentiated.
def test_experts_that_nobody_asks_for_and_ranks_without_tokens_wait_for_nobody(tmp_path: Path) -> None:
    on_processes(2, crowded, (), tmp_path, 300)
    expected = torch.load(tmp_path / "expected.pt", weights_only=True)
    torch.testing.assert_close(torch.load(tmp_path / "0.pt", weights_only=True), expected)
    y, x, w_in, w_out = torch.load(tmp_path / "1.pt", weights_only=True)
    assert len(y) == len(x) == 0 and not w_in.any() and not w_out.any()


@pytest.fixture(scope="module")
def found() -> dict[Case, Found]:
    """What two processes found, all layouts one after another."""
    return checked(2, CASES, WIDTH, 300)


@pytest.fixture(scope="module")
def found_of_four() -> dict[Case, Found]:
    """The same of four processes."""
    return checked(4, OF_FOUR, WIDTH, 300)


# Asks for both: all processes are forked before this one differentiates.
def test_stages_that_are_divided_themselves_are_one_process(
    found: dict[Case, Found], found_of_four: dict[Case, Found]
) -> None:
    for case in OF_FOUR:
        require_one_process(case, found_of_four[case])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_layout_is_one_process(case: Case, found: dict[Case, Found]) -> None:
    require_one_process(case, found[case])


def require_one_process(case: Case, found: Found) -> None:
    one = alone(case, WIDTH)
    away = difference(found.values, one.values)
    assert not away.unlike and len(one.values) > 40
    assert away.gradient < 3e-5, away.worst
    # AdamW makes a step of full size of a gradient that is rounding alone.
    assert away.value < 3e-5 and away.weight < 3e-4


def test_each_process_holds_its_share(found: dict[Case, Found]) -> None:
    whole = take_steps(small_config(5, False, WIDTH), None, steps=1).bytes
    for role, size in found["fsdp2", 5, False].bytes.items():
        assert 0.45 < size / whole[role] < 0.55


def asleep(rank: int, folder: Path) -> None:
    time.sleep(60)


def test_processes_that_do_not_end_are_ended(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 processes did not end in 0 s"):
        on_processes(1, asleep, (), tmp_path, 0.1)
