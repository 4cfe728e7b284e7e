"""What a result says of the code and the machine that made it: the commit and one line of hardware. Which process is
the first of a run."""

import os
import platform
import subprocess
from pathlib import Path

import torch

from kernels.dispatch import has_bf16
from kernels.timing import processor


def commit() -> str:
    """The commit this code is at, with `+changes` where files differ from it; `unknown` outside a checkout."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+changes" if changes else head


def hardware(device: torch.device) -> str:
    """One line: the GPUs, or the processor's cores and whether they multiply bfloat16, and torch's version.

    Args:
        device: of the run, whatever else the machine has.
    """
    version = f"torch {torch.__version__}"
    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}, {version}"
    name = processor() or platform.machine()
    precision = " with bf16" if has_bf16("cpu") else ""
    return f"{os.cpu_count()} cores, {name}{precision}, {version}"


def is_main_process() -> bool:
    """Whether this process is the only one of a run, or the first of several, before and after they find each other.

    torchrun and Lightning's launchers set one of the two variables.
    """
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    return int(rank) == 0


def _git(*words: str) -> str:
    """What git prints of the checkout that holds this file."""
    command = ["git", *words]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()
