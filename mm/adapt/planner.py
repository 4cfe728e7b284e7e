"""How a run is adapted to a set of a given size, and what that will cost on this machine: one step is tried."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mm.adapt.task import AdaptTask, names_of
from mm.batch import Batch

Strategy = Literal["lora", "qlora", "full"]
SMALL, LARGE = 10_000, 100_000
"""Images below which adapters train, and above which all weights do; between them, adapters on packed weights."""


@dataclass(frozen=True)
class Estimate:
    """trainable parameters; memory in bytes at the height of a step; seconds of one step."""

    trainable: int
    memory: int
    seconds: float

    def line(self, strategy: Strategy, images: int, steps: int) -> str:
        return (
            f"{strategy} for {images:,} images: {self.trainable:,} trainable parameters, about"
            f" {self.memory / 2**30:.2f} GiB and {self.seconds * steps / 60:.1f} minutes for {steps} steps here"
        )


def choose(images: int) -> Strategy:
    """The strategy for so many training images."""
    if images < SMALL:
        return "lora"
    return "qlora" if images <= LARGE else "full"


def trainable(task: AdaptTask) -> int:
    return sum(p.numel() for _, p in names_of(task) if p.requires_grad)


def estimate(task: AdaptTask, batch: Batch) -> Estimate:
    """Two forwards and backwards of a batch, the second of which is timed; the task stays as it was."""
    buffers = {name: buffer.clone() for name, buffer in task.named_buffers()}
    task.train()
    for _ in range(2):
        started = time.perf_counter()
        task.seed_step()
        task.losses(task.read(batch), batch)[0].total.backward()
        memory = memory_in_use()
        seconds = time.perf_counter() - started
        task.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in task.named_buffers():
            buffer.copy_(buffers[name])
    moments = 8 * trainable(task)  # of AdamW, two in float32, which exist from the first update on
    return Estimate(trainable(task), memory + moments, seconds)


def memory_in_use() -> int:
    """Bytes: the accelerator's at their height so far, else what this process holds in memory now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    pages = Path("/proc/self/statm")
    if not pages.is_file():
        raise ValueError("this system does not say how much memory a process holds (no /proc/self/statm)")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
