"""Random numbers of a step, drawn where their generator is: on a GPU without a copy that the host waits for."""

import torch
from torch import Tensor


def generator_device(device: torch.device) -> torch.device:
    """Where the generator of what is drawn for a device is: on a GPU itself, else on the CPU."""
    return device if device.type == "cuda" else torch.device("cpu")


def uniform(
    shape: tuple[int, ...], draws: torch.Generator | None, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform in [0, 1).

    Args:
        shape: of the result.
        draws: the generator; None draws from torch's own of the CPU.
        device: of the result.
        dtype: of the result.
    """
    at = torch.device("cpu") if draws is None else draws.device
    drawn = torch.rand(shape, generator=draws, dtype=dtype, device=at)
    return drawn.to(device, non_blocking=True)
