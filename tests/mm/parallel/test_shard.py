"""Two processes that divide a run in any way are one: loss terms, gradients, norm, weights, codes, routing, logs."""

import time
from pathlib import Path

import pytest

from kernels.errors import UserError
from mm.bench.dist import Case, alone, checked, on_processes
from mm.bench.parity import Found, difference, small_config, take_steps

CASES: list[Case] = [
    ("fsdp2", 5, False),  # which are not divided evenly
    ("fsdp2-ep2", 128, True),
    ("tp2", 8, False),
    ("pp2 interleaved", 8, True),
]
WIDTH = 32


@pytest.fixture(scope="module")
def found() -> dict[Case, Found]:
    """What two processes found, all layouts one after another."""
    return checked(2, CASES, WIDTH, 100)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_layout_is_one_process(case: Case, found: dict[Case, Found]) -> None:
    one = alone(case, WIDTH)
    away = difference(found[case].values, one.values)
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
