"""One check of everything on a GPU: each part in a process of its own, within its seconds, written as soon as it is
known.

All processes are forked at once from one that has imported what takes long, and prepare (the CUDA context, data,
compiled kernels); then one at a time has the device. One that fails, or does not end in time, is recorded with what it
had found, and the rest goes on.
"""

import datetime
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from kernels.dispatch import triton_installed
from kernels.errors import UserError
from kernels.timing import device_name
from mm.artifacts.environment import commit
from mm.bench.config import GpuConfig, GpuPart
from mm.device import choose_device
from mm.files import write_json

RESULTS = Path(__file__).parents[2] / "eval" / "results"
SECONDS: Mapping[GpuPart, int] = {
    "parity": 45,
    "sparse": 15,
    "step": 50,
    "memory": 15,
    "writing": 20,
    "evaluation": 25,
    "run": 75,
    "kernels": 120,
}
"""How long each part may have the device."""
IMPORTED = ["mm.bench.step", "mm.bench.features", "mm.evaluation.retrieval", "timm"]
"""What the process that the parts are forked from imports, as far as it is there. None of it may ask for a GPU: a
process that has cannot be forked into one that uses it."""
PREPARATION = 45
"""Seconds within which all parts should be prepared; one that takes longer is timed beside no more than that."""
READY = "ready"
FOUND = "found"
DONE = "done"
FAILED = "failed"
OUT_OF_TIME = "out of time"


@dataclass
class Worker:
    """The process of a part, and this end of its pipe."""

    part: GpuPart
    process: BaseProcess
    pipe: Connection
    ready: bool = False

    def kill(self) -> None:
        """The process with all that it started."""
        if self.process.is_alive() and self.process.pid:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()


def gpu_check(config: GpuConfig, script: Path) -> dict[str, Any]:
    """Measure all parts.

    Args:
        config: which, and on what.
        script: train_align.py.

    Returns:
        what is written: `card`, `commit`, versions, and `parts` by name, each with `state`, `seconds` and what was
        found; `error` where it failed.

    Raises:
        UserError: there is no GPU, or no part is asked for.
    """
    if not config.parts:
        raise UserError("parts is empty: name what is measured, such as --parts '[step]'")
    began = time.perf_counter()
    device = choose_device(config.accelerator)
    result = {**described(config, device), "parts": {}}
    path = config.json or RESULTS / f"gpu_{card_name(device)}.json"
    with folder_of_its_own() as work, started(config, script, work) as workers:
        for worker in workers:
            measured: dict[str, Any] = {}
            result["parts"][worker.part] = measured
            if worker.part != "parity":  # It times nothing: the others prepare beside it.
                for each in workers:
                    until_ready(each, began + min(PREPARATION, config.seconds))
            for _ in followed(worker, measured, began + config.seconds):
                result["seconds"] = round(time.perf_counter() - began, 1)
                write_json(path, result)
            print(f"{worker.part}: {measured['state']}, {measured['seconds']} s", flush=True)
    result["seconds"] = round(time.perf_counter() - began, 1)
    write_json(path, result)
    print(f"{path}: {result['seconds']} s")
    return result


def failures(result: Mapping[str, Any]) -> list[str]:
    """The parts that were not measured to their end, with the reason; failed tests among them."""
    found = []
    for part, measured in result["parts"].items():
        if measured["state"] != DONE:
            found.append(f"{part}: {measured.get('error', measured['state'])}")
        elif measured.get("failed"):
            found.append(f"{part}: {len(measured['failed'])} tests failed, the first: {measured['failed'][0]}")
    return found


def described(config: GpuConfig, device: torch.device) -> dict[str, Any]:
    """Where and with what it is measured."""
    return {
        "card": device_name(device),
        "commit": config.commit or commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": driver() if device.type == "cuda" else None,
        "triton": version("triton") if triton_installed() else None,
        "cores": os.cpu_count(),
    }


def driver() -> str | None:
    """The version of NVIDIA's driver, where its own command tells it."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True)
    return said.stdout.split("\n")[0].strip() or None


def card_name(device: torch.device) -> str:
    """`h100` of "NVIDIA H100 80GB HBM3": what a file is called by; `cpu` without a GPU."""
    if device.type == "cpu":
        return "cpu"
    words = re.split(r"[^a-z0-9]+", device_name(device).lower())
    kept = [
        word for word in words if word not in ("nvidia", "tesla", "pcie") and not re.fullmatch(r"\d+gb|hbm\w*", word)
    ]
    return "_".join(kept)


@contextmanager
def folder_of_its_own() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gpu_check") as folder:
        yield Path(folder)


@contextmanager
def started(config: GpuConfig, script: Path, work: Path) -> Iterator[list[Worker]]:
    """A process for each part; whatever still runs at the end is killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    workers = []
    try:
        for part in config.parts:
            mine, theirs = context.Pipe()
            process = context.Process(target=work_on, args=(part, config, script, work, theirs))
            process.start()
            theirs.close()
            workers.append(Worker(part, process, mine))
        yield workers
    finally:
        for worker in workers:
            worker.kill()


def until_ready(worker: Worker, deadline: float) -> None:
    """Wait until a part is prepared, or has failed, or the time is over."""
    if worker.ready or not worker.process.is_alive():
        return
    worker.ready = worker.pipe.poll(max(0.0, deadline - time.perf_counter()))


def followed(worker: Worker, measured: dict[str, Any], deadline: float) -> Iterator[None]:
    """Let a part have the device, and note in `measured` what it finds; yields after each note.

    Args:
        worker: of the part.
        measured: what is written of it.
        deadline: of all parts, as `time.perf_counter` tells it.
    """
    measured |= {"state": OUT_OF_TIME, "seconds": 0.0}
    began = time.perf_counter()
    while worker.pipe.poll(max(0.0, deadline - time.perf_counter())):
        kind, content = received(worker)
        if kind == READY:
            began = time.perf_counter()
            deadline = min(deadline, began + SECONDS[worker.part])
            worker.pipe.send(None)
            continue
        measured["seconds"] = round(time.perf_counter() - began, 1)
        if kind == FOUND:
            measured |= content
        else:
            measured |= {"state": kind, **content}
            break
        yield
    worker.kill()
    measured["seconds"] = round(time.perf_counter() - began, 1)
    yield


def received(worker: Worker) -> tuple[str, dict[str, Any]]:
    """What a worker says next; that it failed where it died without a word."""
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        return FAILED, {"error": f"the process ended with {worker.process.exitcode}"}


def work_on(part: GpuPart, config: GpuConfig, script: Path, work: Path, pipe: Connection) -> None:
    """What the process of a part does."""

    def begin() -> Iterator[dict[str, Any]]:
        from mm.bench.gpu_parts import PARTS, Context

        return PARTS[part](Context(config, script, work, choose_device(config.accelerator)))

    answer(begin, pipe)


def answer(begin: Callable[[], Iterator[dict[str, Any]]], pipe: Connection) -> None:
    """Prepare, say so, wait to be let, and send what is found."""
    os.setsid()  # Killing its group ends what it starts, too.
    try:
        measuring = begin()
        prepared = next(measuring)
        pipe.send((READY, {}))
        pipe.recv()
        pipe.send((FOUND, prepared))
        for found in measuring:
            pipe.send((FOUND, found))
        pipe.send((DONE, {}))
    except (BrokenPipeError, ConnectionResetError, EOFError):
        return  # The check is over.
    except Exception as error:
        traceback.print_exc()
        said = " ".join(str(error).split())
        pipe.send((FAILED, {"error": f"{type(error).__name__}: {said[:300]}"}))
