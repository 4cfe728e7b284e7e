"""Kill a run at random steps and resume it; train for thousands of steps and watch the memory.

    python scripts/soak.py
    python scripts/soak.py --kills 3 --steps 100 --memory_steps 500 --json soak.json

A run is killed (SIGKILL) `kills` times, each time at a step drawn at random and a random moment within it, and resumed
with one worker process and with none in turn. Its weights must then equal those of the same run that nobody killed, to
the bit. A second run of `memory_steps` is watched: the resident memory of its process at every tenth of it.
"""

import csv
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from mm.cli import run_command
from mm.files import write_json

ROOT = Path(__file__).parents[1]


def soak(
    config: Path = ROOT / "configs/soak.yaml",
    runs: Path = Path("runs/soak"),
    kills: int = 10,
    steps: int = 400,
    memory_steps: int = 5000,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Raises ValueError when a resumed run's weights differ, or a run ends by itself with an error.

    Args:
        config: settings of the runs.
        runs: folder they are written to; must not hold runs of these names.
        kills: how many times the run is killed; 0 leaves this part out.
        steps: its steps.
        memory_steps: steps of the run whose memory is watched; 0 leaves it out.
        seed: of the moments at which it is killed.
        json: where to write what was found.
    """
    if taken := [name for name in ("whole", "killed", "long") if (runs / name).exists()]:
        raise ValueError(f"{runs / taken[0]} exists: give another --runs, or remove it")
    found: dict[str, Any] = {}
    if kills:
        found |= killed(config, runs, kills, steps, random.Random(seed))
    if memory_steps:
        found |= watched(config, runs, memory_steps)
    Console().print_json(data=found)
    if json:
        write_json(json, found)
    if found.get("tensors_that_differ"):
        raise ValueError(
            f"{runs / 'killed'} resumed to other weights than {runs / 'whole'}: {found['tensors_that_differ'][0]}"
        )


def killed(config: Path, runs: Path, kills: int, steps: int, draw: random.Random) -> dict[str, Any]:
    """Where it was killed, and the tensors that differ from the run that was not."""
    finish(start(config, runs, "whole", steps))
    moments = sorted(draw.sample(range(1, steps), kills))
    at = []
    for turn, moment in enumerate(moments):
        moment = max(moment, last_step(runs / "killed") + 1)  # every start gets somewhere
        process = start(config, runs, "killed", steps, *resumed(runs, turn))
        while last_step(runs / "killed") < moment and process.poll() is None:
            time.sleep(0.05)
        time.sleep(draw.random())
        process.kill()
        process.wait()
        at.append(last_step(runs / "killed"))
        print(f"killed {turn + 1} of {kills} after step {at[-1]}", flush=True)
    finish(start(config, runs, "killed", steps, *resumed(runs, kills)))
    whole, other = (load_file(runs / name / "model.safetensors") for name in ("whole", "killed"))
    differ = sorted(whole.keys() ^ other.keys())
    differ = differ or [name for name, value in whole.items() if not torch.equal(value, other[name])]
    return {"steps": steps, "killed_after_logged_step": at, "tensors": len(whole), "tensors_that_differ": differ}


def watched(config: Path, runs: Path, steps: int) -> dict[str, Any]:
    """Resident memory, in MiB, of a long run by step."""
    process = start(config, runs, "long", steps, "--train.checkpoint_every", str(max(1, steps // 10)))
    resident: dict[int, float] = {}
    marks = iter(range(steps // 10, steps + 1, steps // 10))
    mark = next(marks)
    while process.poll() is None and mark is not None:
        if (step := last_step(runs / "long") + 1) >= mark:
            resident[step] = round(resident_bytes(process.pid) / 2**20, 1)
            print(f"step {step}: {resident[step]} MiB", flush=True)
            mark = next(marks, None)  # type: ignore[assignment]
        time.sleep(0.2)
    finish(process)
    return {"resident_mib_by_step": resident}


def start(config: Path, runs: Path, name: str, steps: int, *more: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        str(ROOT / "scripts/train_align.py"),
        "--config",
        str(config),
        "--runs",
        str(runs),
        "--name",
        name,
        "--train.steps",
        str(steps),
        *more,
    ]
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def resumed(runs: Path, turn: int) -> list[str]:
    """The options of the next start: from its checkpoint, if there is one, with another number of workers."""
    workers = ["--data.in_memory", "false", "--data.workers", "1"] if turn % 2 else []
    there = any((runs / "killed" / "checkpoints").glob("*.ckpt"))
    return [*workers, *(["--resume", "true"] if there else [])]


def finish(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        raise ValueError(
            f"`{' '.join(map(str, process.args))}` ended with code {process.returncode}; its log is beside"  # type: ignore[arg-type]
            " the run"
        )


def last_step(run: Path) -> int:
    """The last step that the run has logged, -1 before the first."""
    path = run / "metrics.csv"
    if not path.is_file():
        return -1
    steps = [row["step"] for row in csv.DictReader(path.open())]
    return int(steps[-1]) if steps and steps[-1].isdigit() else -1


def resident_bytes(process: int) -> int:
    """Resident memory of a process and no child of it (Linux)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    run_command(soak)
