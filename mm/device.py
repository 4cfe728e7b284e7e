"""Where a process computes, said in the first line of its log, and in which precision: one rule for every stage."""

import logging
import os
from typing import Literal

import torch

from kernels import dispatch
from kernels.errors import UserError
from kernels.timing import device_name

logger = logging.getLogger(__name__)
Precision = Literal["auto", "fp32", "bf16"]
"""As `train.precision` has it."""
GPU = ("gpu", "cuda")


def choose_device(accelerator: str = "auto") -> torch.device:
    """The device that every stage of this process computes on: features, training, evaluation, re-ranking.

    A GPU becomes torch's current one: a kernel starts there, wherever its tensors are.

    Args:
        accelerator: cpu, gpu, or auto for a GPU where there is one.

    Returns:
        the CPU, or of several GPUs the one that belongs to this process of a run.

    Raises:
        ValueError: there is no such accelerator here.
    """
    if accelerator not in ("auto", "cpu", *GPU):
        raise UserError(f"train.accelerator={accelerator!r}: choose auto, cpu or gpu")
    found = torch.cuda.is_available()
    if accelerator in GPU and not found:
        raise UserError(f"train.accelerator={accelerator!r}, but torch finds no GPU: use auto or cpu")
    device = torch.device("cpu")
    if found and accelerator != "cpu":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK") or 0))
        torch.cuda.set_device(device)
    products = "with" if dispatch.has_bf16(device.type) else "without"
    logger.info("device: %s, %s, %s bfloat16 products", device, device_name(device), products)
    return device


def is_reduced(precision: Precision, device: torch.device) -> bool:
    """Whether a stage computes in bfloat16: where it is asked for, and with auto where the device multiplies it."""
    return precision == "bf16" or (precision == "auto" and dispatch.has_bf16(device.type))


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of every forward: bfloat16 or none, as `is_reduced` says of training, features and evaluation."""
    return torch.autocast(device.type, torch.bfloat16, enabled=is_reduced(precision, device))


def precision_name(precision: Precision, device: torch.device) -> str:
    """What a log says of it: `bfloat16` or `float32`."""
    return "bfloat16" if is_reduced(precision, device) else "float32"
