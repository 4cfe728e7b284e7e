"""The order in which samples are seen: a pure function of (seed, epoch, position).

Neither the number of loader workers nor the number of processes changes what a step holds, and resuming at step s
needs no state but s.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from kernels.errors import UserError

Key = tuple[int, int]
"""(index, epoch) of a sample."""


def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation (size,) of one epoch."""
    rng = np.random.default_rng((seed, epoch))
    return rng.permutation(size)


class StepSampler(Sampler[list[Key]]):
    """Batch sampler over a fixed number of steps; each step yields a list of (index, epoch) keys.

    An epoch is size // batch_size steps; which samples remain over changes with every epoch. The union of the ranks'
    keys in a step is the same for every world size.

    Args:
        size: samples of the split.
        batch_size: the global batch; each of `world_size` processes yields batch_size / world_size keys.
        steps: iteration ends there; also the length.
        seed: another seed, another order.
        start_step: iteration begins there.
        rank: which of the processes this is.
        world_size: how many processes there are.
        limit: if not 0, only so many samples take part: a random choice that is the same for every seed, and of which
            a smaller limit takes a part.

    Raises:
        ValueError: the batch is larger than the split or does not divide over the processes, or a number is impossible.
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
            raise UserError(f"a limit of {limit} images, but the split has {size}")
        self.chosen = epoch_order(size, 0, 0)[:limit] if limit else np.arange(size)
        self.size = len(self.chosen)
        if batch_size < 1 or batch_size > self.size:
            raise UserError(
                f"a batch of {batch_size} cannot be drawn from a split of {self.size} images; "
                f"set a batch size between 1 and {self.size}"
            )
        if batch_size % world_size:
            raise UserError(f"the global batch of {batch_size} does not divide over {world_size} processes")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size} processes")
        if start_step < 0 or steps < 0:
            raise ValueError(f"steps cannot be negative: start {start_step}, total {steps}")
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.start_step = start_step
        self.rank = rank
        self.world_size = world_size

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the split."""
        return self.size // self.batch_size

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.batch_size // self.world_size
        order = np.empty(0, dtype=np.int64)
        order_epoch = -1
        for step in range(self.start_step, self.steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order = epoch_order(self.size, self.seed, epoch)
                order_epoch = epoch
            first = position * self.batch_size + self.rank * share
            indices = self.chosen[order[first : first + share]]
            yield [(index, epoch) for index in indices.tolist()]
