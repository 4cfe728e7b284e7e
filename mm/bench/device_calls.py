"""What a step asks of a GPU: how often the host waits for it, what it launches, how long the card is busy; and a step
captured as a CUDA graph."""

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from kernels.timing import Run as Step
from kernels.timing import wait

ROOT = Path(__file__).parents[2]
KERNELS = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
"""Calls of the runtime and of the driver (Triton's) that start one kernel."""
GRAPH = "cudaGraphLaunch"
COPIES = ("cudaMemcpyAsync", "cudaMemsetAsync")
WAITED = "synchronizing CUDA operation"
"""In torch's warning of an operation for which the host waits."""
WARM_UP = 3
"""Steps before a capture, as torch's documentation asks for."""


def host_waits(step: Step) -> Counter[str]:
    """How often the host waits for the GPU in one step, by the place in our code (`file:line`) or torch's.

    torch knows of the operations it calls synchronizing: copies to the host, sizes that depend on values.
    """
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits: Counter[str] = Counter()
    for warning in caught:
        if WAITED in str(warning.message):
            waits[f"{_short(Path(warning.filename))}:{warning.lineno}"] += 1
    return waits


def _short(path: Path) -> str:
    """A file of the checkout from its root on, any other by its last two names."""
    if path.is_relative_to(ROOT) and "site-packages" not in path.parts:
        return str(path.relative_to(ROOT))
    return "/".join(path.parts[-2:])


def device_calls(step: Step, device: torch.device) -> dict[str, Any]:
    """What torch's profiler sees of one step.

    Returns:
        `launches` of kernels, `graph_launches`, `copies` (also fills), `operations` of aten, and `busy_milliseconds`,
        the time of all kernels on the device, 0 without one.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    wait(device)
    with profile(activities=activities, acc_events=True) as record:
        step()
        wait(device)
    counts: Counter[str] = Counter()
    busy = 0.0
    for event in record.key_averages():
        counts[event.key] += event.count
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:  # a span of kernels, not one
            busy += event.self_device_time_total
    operations = sum(count for name, count in counts.items() if name.startswith("aten::"))
    return {
        "launches": sum(counts[name] for name in KERNELS),
        "graph_launches": counts[GRAPH],
        "copies": sum(counts[name] for name in COPIES),
        "operations": operations,
        "busy_milliseconds": round(busy / 1e3, 3),
    }


@dataclass
class Captured:
    """A step that is replayed. It holds the step, too: what that reads and writes must stay where it was recorded."""

    graph: torch.cuda.CUDAGraph
    step: Step

    def __call__(self) -> None:
        self.graph.replay()


def captured(step: Step) -> Captured:
    """A step as a CUDA graph, whose replay is one launch; the step must always read the same tensors.

    Raises RuntimeError where the step waits for the device, or is otherwise not to be captured.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # Other processes and threads of this one may prepare meanwhile: only what this thread does is forbidden.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return Captured(graph, step)
