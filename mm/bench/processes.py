"""Processes of this machine that torch.distributed connects over gloo, for a while."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kernels.errors import UserError

TIMEOUT = timedelta(seconds=60)
"""Of a collective: one that a rank does not join ends in an error, not in a wait for ever."""


def on_processes(
    processes: int, task: Callable[..., None], arguments: tuple[Any, ...], folder: Path, seconds: float
) -> None:
    """`task(rank, *arguments, folder)` in so many processes that torch.distributed connects over gloo.

    Raises:
        UserError: they did not end in time; all of them are killed.
    """
    started = time.monotonic()
    context = mp.start_processes(
        connected, (processes, task, arguments, folder), nprocs=processes, join=False, start_method="fork"
    )
    assert context is not None
    try:
        while not context.join(timeout=1):
            if time.monotonic() - started > seconds:
                raise UserError(f"{processes} processes did not end in {seconds:.0f} s: one waits for another")
    finally:
        for process in context.processes:
            process.kill()


def connected(rank: int, processes: int, task: Callable[..., None], arguments: tuple[Any, ...], folder: Path) -> None:
    """What a process does: see `on_processes`."""
    torch.set_num_threads(1)
    address = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=processes, timeout=TIMEOUT)
    task(rank, *arguments, folder)
    dist.barrier()
    dist.destroy_process_group()
