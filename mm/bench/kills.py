"""A rank that is killed at any moment: the newest whole checkpoint is left, and is that of a step the run was at.

Processes train and keep a checkpoint after every step, written beside the next one as train_align writes them. One of
them gets SIGKILL, in turn at a random moment and while a checkpoint is written. What is then read has to be, to the
bit, what a run that nobody killed had after that step.
"""

import hashlib
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kernels.errors import UserError
from mm.bench.checkpoints import processes_of, started, whole_training
from mm.bench.parity import Trial, differentiate, update
from mm.bench.processes import connected, on_processes
from mm.parallel.state import begin_saving, load_state
from mm.train.resume import newest_checkpoint

LAYOUTS = ("fsdp2", "pp2")
"""What is killed, in turn."""
MOST = 20
"""Steps of a run; it is killed before."""
KEPT = 2
"""Checkpoints that stay."""
BEFORE = 1.5
"""Seconds, at most, from the first checkpoint to the moment."""
PATIENCE = 60.0
"""Seconds for the first checkpoint, and for the other rank to notice."""


@dataclass(frozen=True)
class Killed:
    """What was left.

    Args:
        layout: of the processes.
        rank: which of them was killed.
        saving: whether a checkpoint was being written.
        step: of the newest whole checkpoint.
        exact: whether it is what a run that nobody killed had after that step.
        noticed: whether the other rank ended by itself.
    """

    layout: str
    rank: int
    saving: bool
    step: int
    exact: bool
    noticed: bool


def killed_runs(kills: int, seed: int = 0) -> list[Killed]:
    """Kill a rank so many times, and look at what is left."""
    draw = random.Random(seed)
    found: list[Killed] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = {layout: _states(layout, folder) for layout in LAYOUTS[:kills]}
        for turn in range(kills):
            layout = LAYOUTS[turn % len(LAYOUTS)]
            run = folder / f"killed{turn}"
            rank = draw.randrange(2)
            saving, noticed = _kill(layout, rank, run, draw.uniform(0, BEFORE), turn // len(LAYOUTS) % 2 == 1)
            newest = newest_checkpoint(run)
            (state,) = _read(layout, newest, run)
            step = int(newest.stem.removeprefix("step="))
            found.append(Killed(layout, rank, saving, step, state == known[layout][step - 1], noticed))
            shutil.rmtree(run)
    return found


def _states(layout: str, folder: Path) -> list[str]:
    """Digests of a run after every step, that nobody kills."""
    place = folder / f"whole-{layout}"
    place.mkdir()
    on_processes(processes_of(layout), _train_whole, (layout,), place, PATIENCE * 4)
    return (place / "digests").read_text().split()


def _kill(layout: str, rank: int, run: Path, after: float, while_saving: bool) -> tuple[bool, bool]:
    """Start a run and kill a rank of it -> whether a checkpoint was being written; whether the others ended."""
    run.mkdir()
    checkpoints = run / "checkpoints"
    ranks = processes_of(layout)
    context = mp.start_processes(
        connected, (ranks, _train_killed, (layout,), run), nprocs=ranks, join=False, start_method="fork"
    )
    assert context is not None
    others = [process for number, process in enumerate(context.processes) if number != rank]
    try:
        _wait(lambda: any(checkpoints.glob("*.ckpt")), f"{layout}: no checkpoint after {PATIENCE:.0f} s")
        time.sleep(after)
        if while_saving:
            _wait(lambda: any(checkpoints.glob("*.tmp")), f"{layout}: no checkpoint is being written")
        saving = any(checkpoints.glob("*.tmp"))
        context.processes[rank].kill()
        for process in others:
            process.join(PATIENCE)
        return saving, not any(process.is_alive() for process in others)
    finally:
        for process in context.processes:
            process.kill()
            process.join()


def _wait(until: Callable[[], bool], reason: str) -> None:
    started_at = time.monotonic()
    while not until():
        if time.monotonic() - started_at > PATIENCE:
            raise UserError(reason)
        time.sleep(0.001)


def _read(layout: str, checkpoint: Path, run: Path) -> Sequence[str]:
    """The digest of what a checkpoint holds."""
    place = run / "read"
    place.mkdir()
    on_processes(processes_of(layout), _load, (layout, checkpoint), place, PATIENCE)
    return (place / "digests").read_text().split()


def _train_whole(rank: int, layout: str, place: Path) -> None:
    task, optimizer, meshes = started(layout)
    digests = []
    for number in range(MOST):
        differentiate(task, meshes, number)
        update(task, optimizer)
        digests.append(digest(task, optimizer))
    if rank == 0:
        (place / "digests").write_text(" ".join(digests))


def _train_killed(rank: int, layout: str, place: Path) -> None:
    task, optimizer, meshes = started(layout)
    writers = dist.new_group(backend="gloo")
    checkpoints = place / "checkpoints"
    saving = None
    for number in range(MOST):
        differentiate(task, meshes, number)
        update(task, optimizer)
        if saving is not None:
            saving.result()
        saving = begin_saving(checkpoints / f"step={number + 1}.ckpt", task, optimizer, {}, writers)
        if rank == 0:
            shutil.rmtree(checkpoints / f"step={number + 1 - KEPT}.ckpt", ignore_errors=True)


def _load(rank: int, layout: str, checkpoint: Path, place: Path) -> None:
    task, optimizer, _ = started(layout)
    load_state(checkpoint, task, optimizer)
    found = digest(task, optimizer)
    if rank == 0:
        (place / "digests").write_text(found)


def digest(task: Trial, optimizer: torch.optim.Optimizer) -> str:
    """Of all weights, buffers and moments, by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(whole_training(task, optimizer).items()):
        found.update(name.encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
