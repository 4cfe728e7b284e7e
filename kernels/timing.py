"""Fair timing: implementations interleaved in one process on the same inputs, median of the repeats, peak memory.

Shared machines drift by more than implementations differ; what is interleaved drifts together, so ratios hold where
milliseconds do not.
"""

import datetime
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], Any]
CPU = torch.device("cpu")
SLOW = 1.0
"""Seconds: what takes longer is repeated three times only."""


@dataclass
class Contest:
    """Implementations that do the same on the same inputs; ``leaves`` have their gradients cleared after every run."""

    op: str
    case: str
    dtype: str
    step: Literal["forward", "forward_backward"]
    runs: dict[str, Run]
    leaves: Sequence[Tensor] = ()
    repeats: int | None = None
    """Rounds, where the contest itself knows."""
    operations: float = 0.0
    """Floating-point operations of a run, where they are counted."""
    device: torch.device = CPU
    """Where the implementations compute, whatever else the machine has."""
    times: dict[str, list[float]] = field(default_factory=dict)

    def rows(self, repeats: int) -> list[dict[str, Any]]:
        """Runs the contest: per implementation op, case, dtype, implementation, pass, milliseconds (median),
        peak_bytes, fastest_milliseconds, repeats, teraflops a second where operations are counted, and where and when.
        """
        self.times = {name: [] for name in self.runs}
        peaks = {name: self.peak_bytes(run) for name, run in self.runs.items()}  # also the warm-up
        for turn in range(max(1, self.repeats or repeats)):
            for name, run in self.runs.items():
                if turn < 3 or min(self.times[name]) < SLOW:
                    self.times[name].append(self.seconds(run))
        return [self.row(name, peaks[name]) for name in self.runs]

    def row(self, name: str, peak: int) -> dict[str, Any]:
        taken = self.times[name]
        row: dict[str, Any] = {"op": self.op, "case": self.case, "dtype": self.dtype}
        row["implementation"] = name
        row["pass"] = self.step
        row["milliseconds"] = round(1e3 * statistics.median(taken), 3)
        row["peak_bytes"] = peak
        row["fastest_milliseconds"] = round(1e3 * min(taken), 3)
        row["repeats"] = len(taken)
        if self.operations:
            row["teraflops"] = round(1e-12 * self.operations / statistics.median(taken), 1)
        return row | surroundings(self.device)

    def seconds(self, run: Run) -> float:
        """One run, with the device's work finished."""
        wait(self.device)
        start = time.perf_counter()
        run()
        wait(self.device)
        taken = time.perf_counter() - start
        self.clear()
        return taken

    def peak_bytes(self, run: Run) -> int:
        """The most memory of torch's allocator held at once beyond what was held before, gradients included."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            peak = torch.cuda.max_memory_allocated() - before
        else:
            peak = cpu_peak_bytes(run)
        self.clear()
        return peak

    def clear(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None


def cpu_peak_bytes(run: Run) -> int:
    """The highest running sum of allocations and releases during ``run``, as torch's profiler saw them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    changes = [event for event in results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    held = 0
    peak = 0
    for event in changes:
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def surroundings(device: torch.device) -> dict[str, Any]:
    """device, threads, torch, driver (CUDA's version, none on a CPU) and date (UTC)."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "driver": torch.version.cuda if device.type == "cuda" else None,
        "date": date,
    }


def device_name(device: torch.device) -> str:
    """A GPU's name, or the processor's and the instructions that torch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}"


def processor() -> str:
    """The processor's own name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
