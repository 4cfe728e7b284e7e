"""A run computes on one device and in one precision; a small one goes through all stages on a pretended device."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mm.device import autocast, choose_device, is_reduced, precision_name
from mm.train.memory import memory_in_use
from mm.train.trainer import trainer_precision

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
PROGRAM = Path(__file__).with_name("on_a_device.py")
WAITS = 2
"""Of the host for the device in one step with all losses and three modalities. Whoever removes some lowers this."""
CALLS = 8500
"""Operations that such a step sends to the device, forward, backward, clipping and optimizer."""


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with GPUs, as torch describes it; those that became the current one."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"chip {device.index}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    return current


def test_without_a_gpu_a_run_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == choose_device("cpu") == CPU
    with pytest.raises(ValueError, match="torch finds no GPU: use auto or cpu"):
        choose_device("gpu")
    with pytest.raises(ValueError, match="'tpu': choose auto, cpu or gpu"):
        choose_device("tpu")


def test_each_process_of_a_run_takes_its_own_gpu(
    gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with caplog.at_level(logging.INFO, "mm.device"):
        assert choose_device() == choose_device("gpu") == CUDA
    assert caplog.messages[0] == "device: cuda:0, chip 0, with bfloat16 products"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("cuda") == torch.device("cuda", 3)
    assert gpus == [CUDA, CUDA, torch.device("cuda", 3)]
    assert choose_device("cpu") == CPU and len(gpus) == 3


@pytest.mark.parametrize("native", [True, False])
def test_precision_asks_the_chosen_device_and_not_another(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without bfloat16 products, which torch emulates, beside a CPU that has them; and the reverse."""

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for device, has in ((CUDA, native), (CPU, not native)):
        assert is_reduced("auto", device) is has
        assert not is_reduced("fp32", device) and is_reduced("bf16", device)
        assert trainer_precision("auto", device) == ("bf16-mixed" if has else "32-true")
        assert trainer_precision("fp32", device) == "32-true" and trainer_precision("bf16", device) == "bf16-mixed"
        assert precision_name("auto", device) == ("bfloat16" if has else "float32")
    with autocast("auto", CPU):
        assert torch.is_autocast_enabled("cpu") is not native


def test_memory_of_a_run_on_the_cpu_is_not_the_gpu_s(gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    assert memory_in_use(CUDA) == 7 and memory_in_use(CPU) > 2**20


@pytest.fixture(scope="module")
def found(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What the program found: `reads` by stage and place, and the errors of `mixed` devices."""
    folder = tmp_path_factory.mktemp("device")
    command = [sys.executable, str(PROGRAM), str(scenes), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_stage_runs_on_a_device_that_is_not_the_cpu(found: dict[str, dict]) -> None:
    """Features, steps, averages, evaluation with re-ranking, codes, planner, embedder, finished runs, peers, bench."""
    stages = {
        "step",
        "schedules",
        "average",
        "evaluation",
        "codes",
        "planner",
        "embedder",
        "writing",
        "finished",
        "peer",
        "bench",
        "scripts",
    }
    assert found["reads"].keys() == stages
    assert [stage for stage, places in found["reads"].items() if not places] == ["planner"]  # it has nothing to look at


def test_what_stays_behind_on_the_cpu_is_an_error(found: dict[str, dict]) -> None:
    """So that the test before this one means something."""
    assert len(found["mixed"]) == 6
    for left, error in found["mixed"].items():
        assert "two devices" in error or "same device" in error, left


def test_a_step_waits_for_its_device_no_more_often_than_it_did(found: dict[str, dict]) -> None:
    places = found["reads"]["step"]
    assert sum(places.values()) <= WAITS, places
    assert places["mm/train/finite.py:check_finite"] == places["mm/train/finite.py:clip_gradients"] == 1


def test_no_schedule_asks_the_device_for_more(found: dict[str, dict]) -> None:
    """Of seven kinds: what they draw, drop and project stays there."""
    places = found["reads"]["schedules"]
    assert sum(places.values()) <= 7 * WAITS, places


def test_a_step_sends_its_device_no_more_operations_than_it_did(found: dict[str, dict]) -> None:
    assert 1000 < found["calls"]["step"] <= CALLS
