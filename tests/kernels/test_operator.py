"""A Triton path is called without its operator's way through the dispatcher, but not where something must see it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.operator import Operator


class Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def plus_one(x: Tensor, path: str) -> Tensor:
    return x + 1


operator = Operator("mm_tests::plus_one", plus_one)


@operator.register_fake
def _(x: Tensor, path: str) -> Tensor:
    return torch.empty_like(x)


@pytest.mark.parametrize(
    ("x", "path", "through"),
    [
        (torch.zeros(2), "triton", False),
        (torch.zeros(2), "cpu", True),
        (nn.Parameter(torch.zeros(2), requires_grad=False), "triton", True),
    ],
)
def test_plain_tensors_of_the_triton_path_take_the_short_way(
    x: Tensor, path: str, through: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple] = []

    def spy(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return plus_one(*arguments)

    monkeypatch.setattr(operator, "operator", spy)
    assert torch.equal(operator(x, path), torch.ones(2))
    assert bool(calls) == through


def test_a_dispatch_mode_sees_the_operator() -> None:
    x = torch.zeros(2)
    with Watch() as watch:
        operator(x, "triton")
    assert watch.seen[0] == "mm_tests::plus_one"


def test_torch_compile_takes_it_whole() -> None:
    compiled = torch.compile(lambda x: operator(x, "triton"), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.zeros(2)), torch.ones(2))
