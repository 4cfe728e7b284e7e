"""Checkpoints of a divided run: a folder that is read under any layout, whole or not there.

Every process writes its own parts (torch's distributed checkpoints), the first one everything else. The folder has
another name until all of it is on the disk.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

WEIGHTS = "state_dict"
MOMENTS = "optimizer"
REST = "rest.pt"
"""Holds what is no tensor of the model or its optimizer."""


def save_state(folder: Path, model: nn.Module, optimizer: Optimizer, rest: Mapping[str, Any]) -> None:
    """Write a checkpoint; called by all processes.

    Args:
        folder: that it becomes; one of this name is replaced.
        model: whose parameters and buffers are kept.
        optimizer: of its parameters.
        rest: of the first process.
    """
    written = folder.with_suffix(".tmp")
    if dist.get_rank() == 0:
        shutil.rmtree(written, ignore_errors=True)
        written.mkdir(parents=True)
    dist.barrier()
    parts = {WEIGHTS: get_model_state_dict(model), MOMENTS: get_optimizer_state_dict(model, optimizer)}
    dcp.save(parts, storage_writer=FileSystemWriter(written, sync_files=True))
    if dist.get_rank() == 0:
        with (written / REST).open("wb") as file:
            torch.save(dict(rest), file)
            file.flush()
            os.fsync(file.fileno())
        if folder.is_dir():
            shutil.rmtree(folder)
        written.rename(folder)
    dist.barrier()


def load_state(folder: Path, model: nn.Module, optimizer: Optimizer | None) -> dict[str, Any]:
    """Read a checkpoint that any layout wrote into a model and its optimizer; called by all processes.

    Returns:
        the rest.
    """
    weights = {WEIGHTS: get_model_state_dict(model)}
    dcp.load(weights, checkpoint_id=folder)
    set_model_state_dict(model, weights[WEIGHTS])
    if optimizer is not None:
        moments = {MOMENTS: get_optimizer_state_dict(model, optimizer)}
        dcp.load(moments, checkpoint_id=folder, planner=DefaultLoadPlanner(allow_partial_load=True))
        set_optimizer_state_dict(model, optimizer, moments[MOMENTS])
        forget_moments(model, optimizer, stored_moments(folder))
    return torch.load(folder / REST, map_location="cpu", weights_only=True)


def stored_moments(folder: Path) -> set[str]:
    """Names of the parameters whose moments a checkpoint holds: those that had a gradient before."""
    names = set()
    for name in FileSystemReader(folder).read_metadata().state_dict_metadata:
        if name.startswith(f"{MOMENTS}.state.") and name.endswith(".exp_avg"):
            names.add(name.removeprefix(f"{MOMENTS}.state.").removesuffix(".exp_avg"))
    return names


def forget_moments(model: nn.Module, optimizer: Optimizer, kept: set[str]) -> None:
    """Drop the moments of parameters that a checkpoint has none of, which reading it has set to zero: a first step
    counts from the first gradient on."""
    for name, parameter in model.named_parameters():
        if name not in kept:
            optimizer.state.pop(parameter, None)


def is_whole_folder(folder: Path) -> bool:
    """Whether a folder is a checkpoint all of whose files are there and as long as they were written."""
    try:
        described = FileSystemReader(folder).read_metadata()
        content = torch.load(folder / REST, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception:  # pickle and zipfile raise anything of what they are fed
        return False
    ends: dict[str, int] = {}
    for part in (described.storage_data or {}).values():
        ends[part.relative_path] = max(ends.get(part.relative_path, 0), part.offset + part.length)
    files = [(folder / name, end) for name, end in ends.items()]
    return isinstance(content, dict) and all(path.is_file() and path.stat().st_size >= end for path, end in files)


def whole_state(model: nn.Module) -> dict[str, Any]:
    """All tensors of a divided model on the CPU of the first process, called by all; nothing on the others."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def as_file(folder: Path, path: Path) -> Path:
    """Write a checkpoint as one file of a run that is not divided, as Lightning reads it.

    Args:
        folder: any layout wrote it.
        path: of the file.

    Returns:
        the path.
    """
    dcp_to_torch_save(folder, path)
    parts = torch.load(path, map_location="cpu", weights_only=True)
    moments = parts[MOMENTS]
    numbers: dict[str, int] = {}
    groups = []
    for group in moments["param_groups"]:
        for name in group["params"]:
            numbers[name] = len(numbers)
        groups.append({**group, "params": [numbers[name] for name in group["params"]]})
    state = {numbers[name]: tensors for name, tensors in moments["state"].items()}
    rest = torch.load(folder / REST, map_location="cpu", weights_only=True)
    whole = {**rest, "state_dict": parts[WEIGHTS], "optimizer_states": [{"state": state, "param_groups": groups}]}
    torch.save(whole, path)
    return path
