"""`mm.load`: a model by its name, on the device that is asked for."""

from os import PathLike
from pathlib import Path

import torch

from kernels.errors import UserError
from mm.device import choose_device
from mm.hub.reference import Reference, is_reference
from mm.infer.base import BaseEmbedder
from mm.infer.embedder import Embedder
from mm.infer.towers import TOWERS


def load(name: str | PathLike[str], device: str = "auto") -> BaseEmbedder:
    """Load a model that makes vectors.

    Args:
        name: the folder of a finished run or of an adapter; `hf://org/name[@revision]` on a hub;
            `open_clip/<model>:<tag or file>` or `timm/<model>[:<file>]`. A folder that exists is a run, whatever it is
            called.
        device: auto is the GPU where there is one; or a device as torch names it, such as cpu or cuda:1.

    Returns:
        an `Embedder` of a run, or a `Tower` of a library's model.

    Raises:
        ValueError: there is no such folder or model, it cannot be loaded, or there is no such device.
    """
    placed = device_of(device)
    if is_reference(name):
        from mm.hub.pull import load_from_hub

        return Embedder(load_from_hub(Reference.of(str(name))).to(placed), str(name))
    library, _, model = str(name).partition("/")
    if not Path(name).is_dir():
        if library not in TOWERS:
            raise UserError(
                f"{name}: no such folder; a model is the folder of a run, hf://org/name[@revision],"
                " open_clip/<model>:<tag or file> or timm/<model>[:<file>]"
            )
        tower = TOWERS[library](model)
        tower.model.to(placed)
        return tower
    embedder = Embedder.load(Path(name))
    embedder.run.model.to(placed)
    embedder.run.loss.to(placed)
    return embedder


def device_of(device: str) -> torch.device:
    """The device of a name.

    Raises:
        ValueError: torch knows no such device, or the machine has none.
    """
    if device == "auto":
        return choose_device()
    try:
        placed = torch.device(device)
        torch.empty(0, device=placed)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} cannot be used ({reason}): auto takes what there is") from error
    return placed
