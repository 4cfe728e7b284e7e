"""Checkpoints of a divided run: a folder that is read under any layout, whole or not there.

Every process writes its own parts (torch's distributed checkpoints), the first one everything else. The folder has
another name until all of it is on the disk.
"""

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed import ProcessGroup
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

from kernels.collectives import Group
from mm.parallel.shard import divided_like, put
from mm.parallel.stages import here, is_elsewhere, whole_tensors

WEIGHTS = "state_dict"
MOMENTS = "optimizer"
FILE_WEIGHTS = "state_dict"
FILE_MOMENTS = "optimizer_states"
"""What Lightning calls them in the file of a run that is not divided."""
REST = "rest.pt"
"""Holds what is no tensor of the model or its optimizer."""


def save_state(folder: Path, model: nn.Module, optimizer: Optimizer, rest: Mapping[str, Any]) -> None:
    """Write a checkpoint, and wait until it is whole; see `begin_saving`."""
    begin_saving(folder, model, optimizer, rest, None).result()
    dist.barrier()


def begin_saving(
    folder: Path, model: nn.Module, optimizer: Optimizer, rest: Mapping[str, Any], group: ProcessGroup | None
) -> Future[None]:
    """Copy a checkpoint into the memory of the CPU, and write it beside what comes next; called by all processes.

    Args:
        folder: that it becomes; one of this name is replaced.
        model: whose parameters and buffers are kept.
        optimizer: of its parameters.
        rest: of the first process.
        group: all processes over gloo, which nothing else uses; None for the group of all, which has to wait then.

    Returns:
        on the first process done when the folder has its name, with the error of whatever was in the way.
    """
    written = folder.with_suffix(".tmp")
    if dist.get_rank() == 0:
        shutil.rmtree(written, ignore_errors=True)
        written.mkdir(parents=True)
        with (written / REST).open("wb") as file:
            torch.save(dict(rest), file)
            file.flush()
            os.fsync(file.fileno())
    dist.barrier()
    parts = {WEIGHTS: own_weights(model), MOMENTS: own_moments(model, get_optimizer_state_dict(model, optimizer))}
    writer = FileSystemWriter(written, sync_files=True)
    saving: Any = dcp.async_save(parts, storage_writer=writer, process_group=group)
    naming = ThreadPoolExecutor(1)
    named = naming.submit(_name, saving, written, folder)
    naming.shutdown(wait=False)
    return named


def _name(saving: Future[Any], written: Path, folder: Path) -> None:
    """Give a folder its name: where the first process is done, all have written their parts."""
    saving.result()
    if dist.get_rank() == 0:
        if folder.is_dir():
            shutil.rmtree(folder)
        written.rename(folder)


def load_state(folder: Path, model: nn.Module, optimizer: Optimizer | None) -> dict[str, Any]:
    """Read a checkpoint that any layout wrote into a model and its optimizer; called by all processes.

    Returns:
        the rest.
    """
    weights = {WEIGHTS: own_weights(model)}
    dcp.load(weights, checkpoint_id=folder)
    # What another stage has is not in it; what is, all of it was read.
    set_model_state_dict(model, weights[WEIGHTS], options=StateDictOptions(strict=False))
    if optimizer is not None:
        moments = get_optimizer_state_dict(model, optimizer)
        read = {MOMENTS: own_moments(model, moments)}
        dcp.load(read, checkpoint_id=folder, planner=DefaultLoadPlanner(allow_partial_load=True))
        # In place, so that what another stage has is there still, empty as before.
        set_optimizer_state_dict(model, optimizer, moments)
        forget_moments(model, optimizer, stored_moments(folder))
    return torch.load(folder / REST, map_location="cpu", weights_only=True)


def load_file(path: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Read the one file of a run that was not divided into a divided model and its optimizer; called by all processes.

    Returns:
        the rest.
    """
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    weights = content.pop(FILE_WEIGHTS)
    for name, part in model.state_dict().items():
        put(part, weights[name].to(part.device))
    (stored,) = content.pop(FILE_MOMENTS)
    for group, kept in zip(optimizer.param_groups, stored["param_groups"], strict=True):
        group.update({name: value for name, value in kept.items() if name != "params"})
        for parameter, number in zip(group["params"], kept["params"], strict=True):
            if number in stored["state"] and not is_elsewhere(parameter):
                optimizer.state[parameter] = moments_like(stored["state"][number], parameter)
    return content


def moments_like(moments: Mapping[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """A whole parameter's moments, divided as it is; its count of steps is the same everywhere."""
    found = {}
    for name, tensor in moments.items():
        tensor = tensor.to(parameter.device)
        found[name] = divided_like(tensor, parameter).clone() if tensor.shape == parameter.shape else tensor.clone()
    return found


def own_weights(model: nn.Module) -> dict[str, Any]:
    """Of a model's state what this process of a pipeline has; of any other all."""
    return here(get_model_state_dict(model), model.state_dict())


def own_moments(model: nn.Module, moments: Mapping[str, Any]) -> dict[str, Any]:
    """The same of an optimizer's state; its groups name all parameters."""
    return {**moments, "state": here(moments["state"], dict(model.named_parameters()))}


def stored_moments(folder: Path) -> set[str]:
    """Names of the parameters whose moments a checkpoint holds: those that had a gradient before."""
    names = set()
    for name in FileSystemReader(folder).read_metadata().state_dict_metadata:
        if name.startswith(f"{MOMENTS}.state.") and name.endswith(".exp_avg"):
            names.add(name.removeprefix(f"{MOMENTS}.state.").removesuffix(".exp_avg"))
    return names


def forget_moments(model: nn.Module, optimizer: Optimizer, kept: set[str]) -> None:
    """Drop the moments of parameters that a checkpoint has none of, or another stage has, which reading it has set to
    zero: a first step counts from the first gradient on."""
    for name, parameter in model.named_parameters():
        if name not in kept or is_elsewhere(parameter):
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


def whole_state(model: nn.Module, group: Group) -> dict[str, Tensor]:
    """All tensors of a divided model on the CPU of the first process, called by all; nothing on the others.

    group: of the pipeline that divides its blocks.
    """
    found = {}
    for name, tensor in whole_tensors(model.state_dict(), group):
        if dist.get_rank() == 0:
            found[name] = tensor.detach().cpu().clone()
    return found


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
    whole = {**rest, FILE_WEIGHTS: parts[WEIGHTS], FILE_MOMENTS: [{"state": state, "param_groups": groups}]}
    torch.save(whole, path)
    return path
