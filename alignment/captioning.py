"""The captioning term: how well a text's next token is foretold from those before it and what it describes."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from kernels.collectives import joint_mean, step_group

NO_LABEL = -100
"""Of a token that is not counted."""


def captioning_loss(logits: Tensor, labels: Tensor, real: Tensor) -> Tensor:
    """The mean cross-entropy, in nats, of the tokens of the global batch; 0 of none.

    Args:
        logits: (N, V) float32, of the token that comes next.
        labels: (N,) int64 in 0..V-1, the token that does.
        real: (N,) bool, which of them count.

    Returns:
        ().
    """
    error = cross_entropy(logits, labels.where(real, NO_LABEL), reduction="sum", ignore_index=NO_LABEL)
    return joint_mean(error, real.sum(), step_group())
