"""The cross-entropy of the tokens of the global batch that count, and the output projection that it is of."""

from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from kernels.collectives import joint_mean, step_group

NO_LABEL = -100
"""Of a token that does not count."""


def joint_cross_entropy(logits: Tensor, labels: Tensor, real: Tensor) -> Tensor:
    """The mean cross-entropy, in nats, of the tokens of all ranks in training; 0 of none.

    Args:
        logits: (N, V).
        labels: (N,) int64 in 0..V-1.
        real: (N,) bool, which of them count.

    Returns:
        () float32.
    """
    error = cross_entropy(logits.float(), labels.where(real, NO_LABEL), reduction="sum", ignore_index=NO_LABEL)
    return joint_mean(error, real.sum(), step_group())


class OutputProjection:
    """Which token it is, by products with the rows of the table that tokens enter by (Press & Wolf 2017)."""

    def logits(self, x: Tensor, table: Tensor) -> Tensor:
        """x (..., F), table (V, F) -> float32 logits (..., V)."""
        return linear(x, table).float()

    def cross_entropy(self, x: Tensor, table: Tensor, labels: Tensor, real: Tensor) -> Tensor:
        """`joint_cross_entropy` of the logits of x (N, F) over the rows of table (V, F) -> ()."""
        return joint_cross_entropy(self.logits(x, table), labels, real)
