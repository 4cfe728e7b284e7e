"""The cross-entropy of the tokens of the global batch that count."""

from torch import Tensor
from torch.nn.functional import cross_entropy

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
