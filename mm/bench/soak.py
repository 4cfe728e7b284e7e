"""A run killed at random steps and resumed, beside one that nobody killed; the memory of a run of thousands of steps;
every set of modalities with some of them absent.

What trains is a script with train_align.py's options, which is handed in: a run is a process of its own, and is killed
as a user's would be.
"""

import csv
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from kernels.errors import UserError
from mm.artifacts.environment import commit, hardware
from mm.bench.corruption import run_corruptions
from mm.bench.presence import run_all
from mm.files import write_json

WHOLE = "whole"
"""The run that nobody kills."""
KILLED = "killed"
"""The same, killed and resumed."""
LONG = "long"
"""The one whose memory is watched."""
PRESENCE = "presence"
"""The folder of those that lack something."""
CORRUPT = "corrupt"
"""The folder of the files that are damaged."""
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Plan:
    """kills of a run of `steps`, at moments that `seed` decides; steps of the run whose memory is watched, 0 skips
    either part; whether every combination of `mm.bench.presence` is run; how many damaged files are read."""

    kills: int
    steps: int
    memory_steps: int
    seed: int = 0
    presence: bool = False
    corrupt: int = 0


@dataclass(frozen=True)
class Starter:
    """What starts a run: the script that trains one, the settings file, and the folder they are written to."""

    script: Path
    config: Path
    runs: Path

    def __call__(self, name: str, steps: int, *more: str) -> subprocess.Popen[bytes]:
        """A run in its own process, its output in <runs>/<name>.log; more: further options."""
        command = [sys.executable, str(self.script)]
        command += ["--config", str(self.config)]
        command += ["--runs", str(self.runs), "--name", name]
        command += ["--train.steps", str(steps), *more]
        self.runs.mkdir(parents=True, exist_ok=True)
        path = self.runs / f"{name}.log"
        with path.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)


def run_soak(start: Starter, plan: Plan, json: Path | None) -> None:
    """Run the parts, print what was found, and write it to `json`.

    Raises ValueError where there are runs already, when a resumed run's weights differ, when a run ends by itself with
    an error, when a combination of modalities is not evaluated as it should be, or when a damaged file is neither
    refused in one line, nor counted, nor read as it was.
    """
    for name in (WHOLE, KILLED, LONG, PRESENCE, CORRUPT):
        if (start.runs / name).exists():
            raise UserError(f"{start.runs / name} exists: give another --runs, or remove it")
    found: dict[str, Any] = {"commit": commit(), "hardware": hardware(torch.device("cpu"))}
    if plan.kills:
        found |= kill_and_resume(start, plan)
    if plan.memory_steps:
        found |= watch_memory(start, plan.memory_steps)
    if plan.presence:
        found["presence"] = run_all(start.runs / PRESENCE, start.script)
    if plan.corrupt:
        found["corrupt"] = run_corruptions(plan.corrupt, start.runs / CORRUPT, plan.seed)
    Console().print_json(data=found)
    if json is not None:
        write_json(json, found)
    require_right(found, start.runs)


def require_right(found: dict[str, Any], runs: Path) -> None:
    """Raise ValueError where a part found something wrong."""
    differ = found.get("tensors_that_differ")
    if differ:
        raise UserError(f"{runs / KILLED} resumed to other weights than {runs / WHOLE}: {differ[0]}")
    if failed := found.get("presence", {}).get("failed"):
        raise UserError(f"{len(failed)} combinations are not evaluated as they should be: {', '.join(failed)}")
    bad = found.get("corrupt", {}).get("faults")
    if bad:
        raise UserError(f"{len(bad)} damaged files are neither refused nor counted, the first: {bad[0]}")


def kill_and_resume(start: Starter, plan: Plan) -> dict[str, Any]:
    """Where the run was killed, and the tensors that differ from the run that was not.

    Every kill is at a step drawn at random, and a random moment within it.
    """
    finish(start(WHOLE, plan.steps))
    draw = random.Random(plan.seed)
    moments = draw.sample(range(1, plan.steps), plan.kills)
    run = start.runs / KILLED
    stopped_at = []
    for turn, moment in enumerate(sorted(moments)):
        process = start(KILLED, plan.steps, *resume_options(run, turn))
        wait_for(process, run, max(moment, last_step(run) + 1))  # every start gets somewhere
        time.sleep(draw.random())
        process.kill()
        process.wait()
        step = last_step(run)
        stopped_at.append(step)
        print(f"killed {turn + 1} of {plan.kills} after step {step}", flush=True)
    finish(start(KILLED, plan.steps, *resume_options(run, plan.kills)))
    whole = load_file(start.runs / WHOLE / "model.safetensors")
    resumed = load_file(run / "model.safetensors")
    return {
        "steps": plan.steps,
        "killed_after_logged_step": stopped_at,
        "tensors": len(whole),
        "tensors_that_differ": differing(whole, resumed),
    }


def watch_memory(start: Starter, steps: int) -> dict[str, Any]:
    """Resident memory, in MiB, of the process of a long run at every tenth of its steps."""
    tenth = max(1, steps // 10)
    process = start(LONG, steps, "--train.checkpoint_every", str(tenth))
    run = start.runs / LONG
    resident: dict[int, float] = {}
    for mark in range(tenth, steps + 1, tenth):
        wait_for(process, run, mark - 1)
        held = resident_bytes(process)
        if held is None:
            break
        step = last_step(run) + 1
        resident[step] = round(held / MEBIBYTE, 1)
        print(f"step {step}: {resident[step]} MiB", flush=True)
    finish(process)
    return {"resident_mib_by_step": resident}


def resume_options(run: Path, turn: int) -> list[str]:
    """The options of the next start: with one worker process and with none in turn, from the run's checkpoint if there
    is one."""
    options = []
    if turn % 2:
        options += ["--data.workers", "1"]
    checkpoints = run / "checkpoints"
    if any(checkpoints.glob("*.ckpt")):
        options += ["--resume", "true"]
    return options


def differing(whole: dict[str, torch.Tensor], resumed: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that only one of the two has, else of those that are not equal to the bit."""
    unpaired = whole.keys() ^ resumed.keys()
    if unpaired:
        return sorted(unpaired)
    return [name for name, tensor in whole.items() if not torch.equal(tensor, resumed[name])]


def wait_for(process: subprocess.Popen[bytes], run: Path, step: int) -> None:
    """Until the run has logged a step, or has ended."""
    while last_step(run) < step and process.poll() is None:
        time.sleep(0.05)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a run. Raises ValueError where it ends badly."""
    code = process.wait()
    if code:
        command: Any = process.args
        raise UserError(f"`{' '.join(command)}` ended with code {code}; its log is beside the run")


def last_step(run: Path) -> int:
    """The last step that the run has logged, -1 before the first and while its log is written anew."""
    path = run / "metrics.csv"
    if not path.is_file():
        return -1
    with path.open() as file:
        steps = [row.get("step") or "" for row in csv.DictReader(file)]
    return int(steps[-1]) if steps and steps[-1].isdigit() else -1


def resident_bytes(process: subprocess.Popen[bytes]) -> int | None:
    """Resident memory of a process and no child of it (Linux); None where it has ended."""
    if process.poll() is not None:
        return None
    status = Path(f"/proc/{process.pid}/status").read_text()
    for line in status.splitlines():  # a process that ended just now has no such line
        if line.startswith("VmRSS"):
            return 1024 * int(line.split()[1])
    return None
