"""The order in which samples are seen: a pure function of (seed, epoch, position).

Neither the number of loader workers nor the number of processes changes what a step holds, and resuming at step s
needs no state but s.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]


def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation (size,) of one epoch."""
    return np.random.default_rng((seed, epoch)).permutation(size)


class StepSampler(Sampler[list[Key]]):
    """Batch sampler over a fixed number of steps; each step yields a list of (index, epoch) keys.

    `batch_size` is the global batch: with `world_size` processes each yields batch_size / world_size keys, and their
    union over the ranks of a step is the same for every world size. An epoch is size // batch_size steps; which
    samples are left over changes with every epoch. Iteration runs from `start_step` to `steps`; the length is `steps`.
    With a `limit`, only so many samples take part: a random choice that is the same for every seed, and of which a
    smaller limit takes a part.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        steps: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        limit: int = 0,
    ) -> None:
        if limit > size:
            raise ValueError(f"a limit of {limit} images, but the split has {size}")
        self.chosen = epoch_order(size, 0, 0)[:limit] if limit else np.arange(size)
        size = len(self.chosen)
        if batch_size < 1 or batch_size > size:
            raise ValueError(
                f"a batch of {batch_size} cannot be drawn from a split of {size} images; "
                f"set a batch size between 1 and {size}"
            )
        if batch_size % world_size:
            raise ValueError(f"the global batch of {batch_size} does not divide over {world_size} processes")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size} processes")
        if start_step < 0 or steps < 0:
            raise ValueError(f"steps cannot be negative: start {start_step}, total {steps}")
        self.size, self.batch_size, self.steps, self.seed, self.start_step = size, batch_size, steps, seed, start_step
        self.rank, self.world_size = rank, world_size

    @property
    def steps_per_epoch(self) -> int:
        return self.size // self.batch_size

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.batch_size // self.world_size
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for step in range(self.start_step, self.steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(self.size, self.seed, epoch), epoch
            first = position * self.batch_size + self.rank * share
            yield [(int(self.chosen[at]), epoch) for at in order[first : first + share]]
