"""How a run is adapted to a set of a given size, and what that will cost on this machine: one step is tried."""

import time
from dataclasses import dataclass

import torch

from kernels.timing import wait
from mm.adapt.config import Strategy
from mm.adapt.task import AdaptTask
from mm.batch import Batch
from mm.device import autocast
from mm.train.memory import forget_peak, memory_in_use

SMALL = 10_000
"""Images below which adapters train."""
LARGE = 100_000
"""Images above which all weights train; up to there, adapters on packed weights."""


@dataclass(frozen=True)
class Estimate:
    """trainable parameters; memory in bytes at the height of a step; seconds of one step."""

    trainable: int
    memory: int
    seconds: float

    def line(self, strategy: Strategy, images: int, steps: int) -> str:
        """What a run of so many steps will cost, in words."""
        gibibytes = self.memory / 2**30
        minutes = self.seconds * steps / 60
        return (
            f"{strategy} for {images:,} images: {self.trainable:,} trainable parameters, about {gibibytes:.2f} GiB and"
            f" {minutes:.1f} minutes for {steps} steps here"
        )


def choose(images: int) -> Strategy:
    """The strategy for so many training images."""
    if images < SMALL:
        return "lora"
    return "qlora" if images <= LARGE else "full"


def estimate(task: AdaptTask, batch: Batch) -> Estimate:
    """Two forwards and backwards of a batch where the task is, the second of which is timed; the task stays as it was.

    Of a GPU the memory is that of these steps alone: what ran before may have taken more.
    """
    device = task.run.device
    batch = batch.to(device)
    buffers = {name: buffer.clone() for name, buffer in task.named_buffers()}
    task.train()
    forget_peak(device)
    for _ in range(2):
        wait(device)
        started = time.perf_counter()
        task.seed_step()
        with autocast(task.config.train.precision, device):
            terms, _ = task.losses(task.read(batch), batch)
        terms.total.backward()
        memory = memory_in_use(device)
        wait(device)
        seconds = time.perf_counter() - started
        task.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in task.named_buffers():
            buffer.copy_(buffers[name])
    trainable = task.trainable()
    moments = 8 * trainable  # of AdamW, two in float32, which exist from the first update on
    return Estimate(trainable, memory + moments, seconds)
