"""Checkpoints of every layout, read under every layout: weights and moments have to come back to the bit.

A small run takes two steps and is kept, as a folder, as the one file of a run that is not divided, or as the
model.safetensors of a finished one, which has no moments.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from encoders.state import read_weights, write_weights
from kernels.collectives import pipeline
from mm.bench.parity import Trial, built, differentiate, initial_device, small_config, small_run, update
from mm.bench.processes import on_processes
from mm.parallel.layout import ParallelConfig
from mm.parallel.mesh import Meshes
from mm.parallel.stages import is_elsewhere, whole_tensors
from mm.parallel.state import as_file, load_file, load_state, save_state

ALONE = "1"
"""One process that divides nothing."""
FINISHED = "model.safetensors"
"""What a finished run is kept as."""
MATRIX = (ALONE, "ddp2", "fsdp2", "tp2", "fsdp2-ep2", "pp2", "fsdp2-tp2", "fsdp2-pp2", "tp2-pp2")
"""Layouts that write and read."""
STEPS = 2
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Reading:
    """What came back of a checkpoint.

    Args:
        saved: the layout that wrote it, or `FINISHED`.
        loaded: the layout that read it.
        tensors: how many it holds.
        differ: the names of those that are not the same to the bit.
    """

    saved: str
    loaded: str
    tensors: int
    differ: list[str]


def read_everywhere(words: Sequence[str], seconds: float) -> list[Reading]:
    """Every layout's checkpoint under every layout.

    Args:
        words: of the layouts.
        seconds: that the processes of one number may take.

    Raises:
        UserError: they did not end in time.
    """
    found: list[Reading] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for task, more in ((_save, ()), (_load, (tuple(words),))):
            for processes in sorted({processes_of(word) for word in words}):
                own = [word for word in words if processes_of(word) == processes]
                place = folder / f"{task.__name__}{processes}"
                place.mkdir()
                on_processes(processes, task, (own, *more, folder), place, seconds)
        for path in sorted(folder.glob("_load*/found.pt")):
            found += torch.load(path, weights_only=False)  # This program's own, written just now.
    return found


def processes_of(word: str) -> int:
    """How many processes a layout takes."""
    return 1 if word == ALONE else ParallelConfig.of_word(word).processes


def _save(rank: int, words: Sequence[str], folder: Path, place: Path) -> None:
    for word in words:
        task, optimizer, meshes = started(word)
        for number in range(STEPS):
            differentiate(task, meshes, number)
            update(task, optimizer)
        state = whole_training(task, optimizer)
        if word == ALONE:
            whole = {"state_dict": task.state_dict(), "optimizer_states": [optimizer.state_dict()]}
            torch.save(whole, folder / f"{word}.ckpt")
            write_weights(task.run.state_dict(), folder / FINISHED)
            torch.save({name: state[name] for name in task.state_dict()}, folder / f"{FINISHED}.pt")
        else:
            save_state(folder / f"{word}.ckpt", task, optimizer, {"global_step": STEPS})
        if rank == 0:
            torch.save(state, folder / f"{word}.pt")


def _load(rank: int, words: Sequence[str], saved: Sequence[str], folder: Path, place: Path) -> None:
    found = []
    for word in words:
        for name in (*saved, FINISHED):
            if name == FINISHED:
                task, optimizer, _ = started(word, folder / FINISHED)
            else:
                task, optimizer, _ = started(word)
                resume(word, folder / f"{name}.ckpt", task, optimizer, place)
            state = whole_training(task, optimizer)
            expected = torch.load(folder / f"{name}.pt", weights_only=True)
            unlike = state.keys() ^ expected.keys()
            differ = [key for key in state if key not in unlike and not torch.equal(state[key], expected[key])]
            found.append(Reading(name, word, len(expected), sorted(unlike) + differ))
    if rank == 0:
        torch.save(found, place / "found.pt")


def started(word: str, finished: Path | None = None) -> tuple[Trial, Optimizer, Meshes | None]:
    """A small run under a layout, from its initial weights or those of a finished one, and its optimizer."""
    config = small_config()
    # One modality less: a checkpoint of another encoder shows nothing more. What writes has no pipeline.
    config = replace(config, model=replace(config.model, modalities=("image", "text"), generate=False))
    run = small_run(config, initial_device())
    if finished is not None and dist.get_rank() == 0:
        run.load_state_dict(read_weights(finished))
    return built(run, None if word == ALONE else ParallelConfig.of_word(word))


def resume(word: str, path: Path, task: Trial, optimizer: Optimizer, place: Path) -> None:
    """Read a checkpoint as a resumed run of this layout does."""
    if word != ALONE:
        read = load_file if path.is_file() else load_state
        read(path, task, optimizer)
        return
    if path.is_dir():
        path = as_file(path, place / "whole.ckpt")
    content = torch.load(path, weights_only=True)
    task.load_state_dict(content["state_dict"])
    optimizer.load_state_dict(content["optimizer_states"][0])


def whole_training(task: Trial, optimizer: Optimizer) -> dict[str, Tensor]:
    """All weights, buffers and moments by name, whole, on every process."""
    named = dict(task.state_dict())
    for name, parameter in task.named_parameters():
        state: dict[str, Any] = optimizer.state.get(parameter, {})
        for moment in MOMENTS:
            named[f"{name}: {moment}"] = state.get(moment, torch.empty(0))
    return {name: x.detach().clone() for name, x in whole_tensors(named, pipeline()) if not is_elsewhere(x)}


def described(found: Sequence[Reading]) -> str:
    """One line of what came back."""
    exact = sum(not each.differ for each in found)
    said = f"checkpoints: {exact} of {len(found)} come back to the bit under another layout or their own"
    for each in found:
        if each.differ:
            said += (
                f"\n  {each.saved} under {each.loaded}: {len(each.differ)} of {each.tensors} differ: {each.differ[0]}"
            )
    return said
