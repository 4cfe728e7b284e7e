"""The process's own memory: how much is in use, and what is freed kept for the next step."""

import ctypes
import logging
import os
import sys
from pathlib import Path

import torch

from kernels.errors import UserError

logger = logging.getLogger(__name__)

# glibc's mallopt parameters, malloc.h.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
STATM = Path("/proc/self/statm")


def keep_freed_memory() -> bool:
    """Let malloc reuse large freed blocks; -> whether this C library can be told so.

    By default glibc gives every block above 32 MB back to the kernel when it is freed, and a training step on a CPU
    frees and asks for the same large blocks over and over: each comes back as pages that fault and are zeroed one
    by one.
    """
    if not sys.platform.startswith("linux"):
        logger.info("memory: freed blocks go back to the system (no glibc)")
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        logger.info("memory: freed blocks go back to the system (the C library has no mallopt)")
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 256 * 2**20))
    done = all(library.mallopt(option, value) == 1 for option, value in settings)
    logger.info(
        "memory: freed blocks are %s",
        "kept for the next step" if done else "given back to the system (mallopt refused)",
    )
    return done


def forget_peak(device: torch.device) -> None:
    """Begin anew with the height of a GPU's memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def known_memory(device: torch.device) -> int | None:
    """`memory_in_use`, None where the system does not say."""
    return memory_in_use(device) if device.type == "cuda" or STATM.is_file() else None


def memory_in_use(device: torch.device) -> int:
    """Bytes: a GPU's at their height so far; of the CPU, what this process holds in memory now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not STATM.is_file():
        raise UserError("this system does not say how much memory a process holds (no /proc/self/statm)")
    resident = int(STATM.read_text().split()[1])
    return resident * os.sysconf("SC_PAGE_SIZE")
