"""A call like one before starts what that one compiled; whatever Triton specializes on makes another call."""

from typing import Any

import pytest
import torch

import kernels.launch
from kernels.launch import launch


class OnGPU(torch.Tensor):
    """Says that it is on one."""

    is_cuda = True  # type: ignore[assignment]


class Kernel:
    """Compiles, as Triton does, and notes what is started."""

    function = 7
    packed_metadata = "metadata"

    def __init__(self) -> None:
        self.compiled = 0
        self.started: list[tuple] = []

    def __getitem__(self, grid: tuple[int, int]) -> Any:
        def start(*arguments: Any, **options: Any) -> "Kernel":
            self.compiled += 1
            return self

        return start

    def run(self, *arguments: Any) -> None:
        self.started.append(arguments)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(kernels.launch, "_compiled", {})
    monkeypatch.setattr(kernels.launch, "_known", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 5, raising=False)
    return Kernel()


def test_the_second_call_starts_the_same_binary(kernel: Kernel) -> None:
    x = torch.zeros(8).as_subclass(OnGPU)
    for weight in (0.5, 0.25):  # Triton specializes on no float
        launch(kernel, (3, 2), x, 16, weight, num_warps=4)
    assert kernel.compiled == 1
    (arguments,) = kernel.started
    assert arguments[:9] == (3, 2, 1, 5, 7, "metadata", None, None, None)
    assert arguments[9] is x and arguments[10:] == (16, 0.25)


@pytest.mark.parametrize("changed", ["number", "option", "dtype", "alignment"])
def test_what_triton_specializes_on_is_another_call(kernel: Kernel, changed: str) -> None:
    x = torch.zeros(8).as_subclass(OnGPU)
    launch(kernel, (1, 1), x, 16, num_warps=4)
    other = {"dtype": x.half(), "alignment": x[1:]}.get(changed, x)
    launch(kernel, (1, 1), other, 1 if changed == "number" else 16, num_warps=8 if changed == "option" else 4)
    assert kernel.compiled == 2 and not kernel.started


def test_tritons_interpreter_and_unknown_versions_are_asked_every_time(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        launch(kernel, (1, 1), torch.zeros(8))
    monkeypatch.setattr(kernels.launch, "_known", lambda: False)
    for _ in range(2):
        launch(kernel, (1, 1), torch.zeros(8).as_subclass(OnGPU))
    assert kernel.compiled == 4
