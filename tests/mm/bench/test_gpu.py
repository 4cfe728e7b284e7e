"""The check of a GPU without one: each part is written as soon as it is known, whatever becomes of the others."""

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eval.gpu import described_gpu, gpu_lines
from kernels.errors import UserError
from kernels.testing import GroupedMLPCase
from mm.bench import gpu
from mm.bench.config import GPU_PARTS, GpuConfig
from mm.bench.device_calls import captured, device_calls, host_waits
from mm.bench.gpu_parts import PARTS, Context, counted_tests, described_run, sparse_contest

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parents[3] / "scripts" / "gpu_check.py"
Found = dict[str, Any]
SMALL = """
name: small
image: {width: 16}
text: {width: 16, heads: 2}
bottleneck: {quantizer: {num_codes: 16, width: 8}}
model:
  modalities: [image, text]
  embedding: 16
  token_embedding: 8
  backbone: {width: 32, layers: 1, heads: 2, moe: {num_experts: 8, top_k: 2, hidden: 8, shared: 16}}
loss: {filip_rows: 4, itm_rows: 4}
train: {precision: fp32}
"""


def worked(begin: Callable[[], Iterator[Found]], seconds: float = 30) -> list[Found]:
    """What is written of a part, time after time."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=gpu.answer, args=(begin, theirs))
    process.start()
    theirs.close()
    measured: Found = {}
    written = []
    for _ in gpu.followed(gpu.Worker("sparse", process, mine), measured, time.perf_counter() + seconds):
        written.append(json.loads(json.dumps(measured)))
    assert not process.is_alive()
    return written


def test_what_is_found_is_written_at_once() -> None:
    def begin() -> Iterator[Found]:
        yield {"rows": []}
        yield {"rows": [1]}
        yield {"rows": [1, 2]}

    written = worked(begin)
    assert [each["rows"] for each in written] == [[], [1], [1, 2], [1, 2]]
    assert [each["state"] for each in written] == ["out of time"] * 3 + ["done"]


def test_a_part_that_fails_keeps_what_it_found_and_one_line() -> None:
    def begin() -> Iterator[Found]:
        yield {"rows": [1]}
        raise RuntimeError("no kernel\nfor this card")

    last = worked(begin)[-1]
    assert (last["state"], last["rows"], last["error"]) == ("failed", [1], "RuntimeError: no kernel for this card")


def test_a_part_that_fails_while_it_prepares_is_one_that_fails() -> None:
    def begin() -> Iterator[Found]:
        raise UserError("no data")

    assert worked(begin)[-1]["error"] == "UserError: no data"


def test_a_process_that_dies_is_a_part_that_fails() -> None:
    def begin() -> Iterator[Found]:
        yield {"rows": [1]}
        os._exit(9)

    last = worked(begin)[-1]
    assert (last["state"], last["rows"]) == ("failed", [1]) and "9" in last["error"]


def test_a_part_out_of_time_is_killed_with_what_it_started(tmp_path: Path) -> None:
    def begin() -> Iterator[Found]:
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        (tmp_path / "child").write_text(str(child))
        yield {"rows": [1]}
        time.sleep(60)

    started = time.perf_counter()
    last = worked(begin, 1.0)[-1]
    assert (last["state"], last["rows"]) == ("out of time", [1]) and time.perf_counter() - started < 20
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("what it started still runs")


def test_parts_that_were_not_measured_are_named() -> None:
    parts = {
        "step": {"state": "done"},
        "run": {"state": "failed", "error": "RuntimeError: it"},
        "memory": {"state": "out of time"},
        "parity": {"state": "done", "failed": ["test_x"]},
    }
    said = gpu.failures({"parts": parts})
    assert said == ["run: RuntimeError: it", "memory: out of time", "parity: 1 tests failed, the first: test_x"]


def test_every_part_has_its_seconds_and_its_lines() -> None:
    assert tuple(PARTS) == tuple(gpu.SECONDS) == GPU_PARTS
    for part in GPU_PARTS:
        failed = {"state": "failed", "error": "E: it"}
        assert gpu_lines({"parts": {part: failed}}) == [(part, "failed: E: it")]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100_sxm4"),
        ("NVIDIA GeForce RTX 4090", "geforce_rtx_4090"),
    ],
)
def test_a_file_is_called_by_its_card(name: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "device_name", lambda _: name)
    assert gpu.card_name(torch.device("cuda")) == file and gpu.card_name(CPU) == "cpu"


def test_tests_are_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    cases = {"a": "", "b": "<failure/>", "c": "<skipped/>", "d": "<error/>", "e": ""}
    inner = "".join(f'<testcase classname="k" name="{name}">{said}</testcase>' for name, said in cases.items())
    report.write_text(f"<testsuites><testsuite>{inner}</testsuite></testsuites>")
    assert counted_tests(report) == {"passed": 2, "skipped": 1, "failed": ["k::b", "k::d"]}


def test_what_is_not_training_is_the_rest_of_the_process() -> None:
    result = {
        "seconds_by_phase": {"preparation": 2.0, "training": 6.0, "evaluation": 1.0},
        "metrics": {"RSUM": 88.0},
        "config": {"train": {"steps": 140}},
    }
    found = described_run(result, 12.0)
    assert found["seconds_by_phase"]["start and end"] == 3.0 and found["share_not_training"] == 0.5
    (line,) = gpu_lines({"parts": {"run": {"state": "done", **found}}})
    assert line[0] == "a run of 140 steps" and line[1].startswith("12 s: ") and "50 % is not training" in line[1]


def test_a_dense_layer_is_as_wide_as_the_active_experts_or_as_all(tmp_path: Path) -> None:
    context = Context(GpuConfig(tiny=True, accelerator="cpu"), SCRIPT, tmp_path, CPU)
    contest = sparse_contest(context, "it", GroupedMLPCase(12, 4, 2, 16, 8))
    x, w_in, w_out, active_up, active_down, all_up, all_down = contest.leaves
    assert active_up.shape == (2 * 2 * 8, 16) and active_down.shape == (16, 2 * 8)
    assert all_up.shape[0] == w_in.shape[0] * w_in.shape[1] and all_down.shape[1] == w_out.shape[0] * w_out.shape[2]
    rows = contest.rows(1)
    assert [row["implementation"] for row in rows] == ["experts", "dense, equal active", "dense, equal total"]
    contest.runs["dense, equal total"]()
    assert x.grad is not None and all_up.grad is not None and w_in.grad is None


def test_operations_of_a_step_are_counted() -> None:
    a = torch.randn(4, 4)
    found = device_calls(lambda: a.add(a).add_(a).mul_(a), CPU)
    assert found.pop("operations") == 3 and set(found.values()) == {0}


def test_host_waits_are_counted_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step() -> None:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("another", stacklevel=1)

    waits = host_waits(step)
    (place,) = waits
    assert waits.total() == 3 and place.startswith("tests/mm/bench/test_gpu.py:")
    assert modes == ["warn", "default"] and isinstance(waits, Counter)


def test_a_captured_step_keeps_what_it_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording reads and writes where the parameters were: they may not be freed while it can be replayed."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    replayed = []
    graph = SimpleNamespace(replay=lambda: replayed.append(1))
    fakes = {"Stream": lambda: stream, "current_stream": lambda: stream, "CUDAGraph": lambda: graph}
    contexts = {"stream": lambda stream: nullcontext(), "graph": lambda graph, capture_error_mode: nullcontext()}
    for name, fake in (fakes | contexts).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    parameter = torch.ones(1)
    alive = weakref.ref(parameter)

    def step_of(parameter: torch.Tensor) -> Callable[[], None]:
        def step() -> None:
            parameter.add_(1)

        return step

    replay = captured(step_of(parameter))
    del parameter
    gc.collect()
    found = alive()
    assert found is not None and found.item() == 5  # three to warm up, and the one that is recorded
    replay()
    assert replayed == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: a CUDA graph needs one")
def test_a_captured_step_is_one_launch_and_computes_the_same() -> None:
    x = torch.ones(4, device="cuda")
    replay = captured(lambda: x.mul_(2).add_(1))
    x.fill_(1)
    replay()
    assert x.tolist() == [3.0] * 4
    assert device_calls(replay, x.device)["graph_launches"] == 1


@pytest.fixture
def small(tmp_path: Path) -> GpuConfig:
    settings = tmp_path / "small.yaml"
    settings.write_text(SMALL)
    return GpuConfig(("sparse",), settings, "cpu", tiny=True, commit="abc")


def test_every_part_runs_without_a_gpu(small: GpuConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: importing torch anew would be most of the time."""
    monkeypatch.setattr("kernels.bench.DEVICE", "cpu")
    context = Context(small, SCRIPT.with_name("train_align.py"), tmp_path, CPU)
    found = {}
    for part in ("kernels", "memory", "step", "writing", "evaluation"):
        *_, last = PARTS[part](context)  # type: ignore[index]
        found[part] = json.loads(json.dumps(last)) | {"state": "done"}
    lines = dict(gpu_lines({"parts": found}))
    assert {row["op"] for row in found["kernels"]["rows"]} == {"grouped_mlp", "nearest_code", "info_nce"}
    assert "with checkpointing" in lines["memory of a step, small, batch 4"]
    assert "operations" in lines["step, batch 4, calls"] and lines["step, batch 4"].startswith("ours ")
    assert "a token " in lines["writing, 3 sequences at once"] and "unfused" in lines["writing, 3 sequences at once"]
    assert 0 < found["writing"]["tokens_a_second"] < found["writing"]["limit_tokens_a_second"]
    assert "product" in lines["evaluator, 10 x 50 x 8"] and "16: " in lines["a split evaluated, by depth of re-ranking"]


def test_the_check_writes_where_it_was_measured(small: GpuConfig, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    gpu.gpu_check(replace(small, json=path), SCRIPT)
    found = json.loads(path.read_text())
    assert found["parts"]["sparse"]["state"] == "done" and "(commit abc)" in described_gpu(found)
    assert "experts" in dict(gpu_lines(found))["sparse, tiny"]


def test_what_is_imported_before_the_parts_are_forked_asks_for_no_gpu() -> None:
    program = (
        "import importlib, torch\n"
        "asked = []\n"
        "for name in ('_cuda_getDeviceCount', '_cuda_init', '_cuda_getDevice'):\n"
        "    setattr(torch._C, name, lambda *_, name=name: asked.append(name) or 0)\n"
        f"for name in {gpu.IMPORTED}: importlib.import_module(name)\n"
        "print(asked)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=SCRIPT.parents[1], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_without_a_gpu_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        gpu.gpu_check(GpuConfig(), Path(sys.argv[0]))
    with pytest.raises(UserError, match="parts is empty"):
        gpu.gpu_check(GpuConfig(parts=()), Path(sys.argv[0]))
