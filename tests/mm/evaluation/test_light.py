"""Runs are timed side by side, by what they embed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mm.artifacts.run import Run, save_run
from mm.evaluation import light


def test_every_run_is_timed_on_one_core_and_threads_come_back(
    tiny_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(light, "REPEATS", 1)
    save_run(tiny_run().eval(), tmp_path / "run")
    torch.set_num_threads(2)
    first, second = light.milliseconds_of([tmp_path / "run"] * 2)
    assert torch.get_num_threads() == 2
    assert first.keys() == second.keys() == {"image", "text"} and min(*first.values(), *second.values()) > 0
