"""The device of the kernels' tests, and the path they force."""

from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def use_path(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Forces a path for the rest of the test."""

    def force(path: str) -> None:
        monkeypatch.setenv("MM_KERNELS", path)
        if path == "triton":
            pytest.importorskip("triton", reason="Triton is not installed")
            if not torch.cuda.is_available():
                _let_interpreter_loop(monkeypatch)

    return force


def _let_interpreter_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6 turns a loop bound into an int through a one-element array, which numpy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
