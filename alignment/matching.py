"""The matching term, binary over pairs. Negatives are drawn where the global similarity is high
(ALBEF, Li et al. 2021)."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from kernels.errors import UserError


def hard_negatives(
    similarity: Tensor, ids: Tensor, scale: float | Tensor, draws: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """For each row a wrong column, for each column a wrong row, drawn with probability softmax(scale · similarity).

    similarity (B, B), ids (B,) -> column of each row (B,), row of each column (B,). Equal ids are never drawn. draws:
    on the CPU, whatever the device; None draws from torch's own generator.
    """
    same = ids[:, None] == ids[None, :]
    if bool(same.all(1).any()):
        raise UserError(f"a batch of {len(ids)} with one image has no negative pair: use a larger batch")
    logits = (scale * similarity.float()).masked_fill(same, float("-inf"))
    return sampled(logits.softmax(1), draws), sampled(logits.T.softmax(1), draws)


def sampled(probability: Tensor, draws: torch.Generator | None = None) -> Tensor:
    """probability (B, S) -> (B,) int64, of each row a place, drawn by one number of the CPU's: never one of probability
    zero."""
    cumulative = probability.double().cumsum(1)
    chance = torch.rand(len(probability), 1, dtype=torch.float64, generator=draws).to(probability.device)
    return (cumulative <= chance * cumulative[:, -1:]).sum(1)


def matching_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Binary cross-entropy of match logits, positives (P,) and negatives (N,) weighing half each -> ()."""
    of_positives = softplus(-positive.float()).mean()
    of_negatives = softplus(negative.float()).mean()
    return 0.5 * (of_positives + of_negatives)
