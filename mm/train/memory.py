"""The process's own memory: keep what is freed, instead of asking the kernel for zeroed pages at every step."""

import ctypes
import logging
import sys

logger = logging.getLogger(__name__)

# glibc's mallopt parameters, malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


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
