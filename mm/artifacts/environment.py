"""Where a result was made: the commit of the code, and the machine."""

import os
import platform
import subprocess
from pathlib import Path

import torch

from kernels.dispatch import has_bf16


def commit() -> str:
    """The commit this code is at, with `+changes` where files differ from it; `unknown` outside a checkout."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+changes" if changed else head


def hardware() -> str:
    """One line: the accelerator, or the processor's cores and whether they multiply bfloat16, and torch's version."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, torch {torch.__version__}"
    bf16 = " with bf16" if has_bf16("cpu") else ""
    return f"{os.cpu_count()} cores, {_processor()}{bf16}, torch {torch.__version__}"


def _git(*words: str) -> str:
    command = ["git", *words]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
