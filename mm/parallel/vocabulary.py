"""An output projection whose rows processes divide: each has the logits of its own words (Shoeybi et al. 2019)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear

from kernels.collectives import Group, gather_uneven, joint_mean, partial_sum, rank_and_size, shared_input, step_group
from kernels.cross_entropy import OutputProjection
from kernels.errors import UserError
from mm.parallel.experts import local


@dataclass(frozen=True)
class DividedOutputProjection(OutputProjection):
    """`OutputProjection` of ranks that have the same tokens.

    Args:
        group: of these ranks.
    """

    group: Group

    @torch.no_grad()
    def logits(self, x: Tensor, table: Tensor) -> Tensor:
        """x (..., F), table (V, F) -> float32 logits (..., V), gathered, without gradients."""
        _, rows = self.share(table)
        own = linear(x, rows).float().movedim(-1, 0)
        return gather_uneven(own.contiguous(), self.group).movedim(0, -1)

    def cross_entropy(self, x: Tensor, table: Tensor, labels: Tensor, real: Tensor) -> Tensor:
        """Of x (N, F), table (V, F), labels (N,) of real (N,) ones -> (), see `OutputProjection`."""
        start, rows = self.share(table)
        logits = linear(shared_input(x, self.group), rows).float()
        place = labels - start
        here = (place >= 0) & (place < len(rows))
        label = logits.gather(1, place.clamp(0, len(rows) - 1)[:, None]).squeeze(1)
        rank, ranks = rank_and_size(self.group)
        # Of every rank the log of its sum of exponentials, and last the logits of the labels.
        parts = logits.new_zeros(ranks + 1, len(logits))
        parts[rank] = logits.logsumexp(1)
        parts[ranks] = label.where(here, 0)
        parts = partial_sum(parts, self.group)
        error = parts[:ranks].logsumexp(0) - parts[ranks]
        return joint_mean(error.where(real, 0).sum(), real.sum(), step_group())

    def share(self, table: Tensor) -> tuple[int, Tensor]:
        """Of a table (V, F), divided or whole, this rank's rows (v, F), and the number of the first.

        Raises:
            UserError: a rank would have none.
        """
        rank, ranks = rank_and_size(self.group)
        size = -(-len(table) // ranks)
        if size * (ranks - 1) >= len(table):
            raise UserError(f"tp{ranks} divides a vocabulary of {len(table)} tokens so that a process has none of them")
        start = rank * size
        if isinstance(table, DTensor):
            return start, local(table)
        return start, shared_input(table, self.group)[start : start + size]
