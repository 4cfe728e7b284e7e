"""The matching term, binary over pairs. Negatives are drawn where the global similarity is high
(ALBEF, Li et al. 2021)."""

import torch
from torch import Tensor
from torch.nn.functional import softplus


def hard_negatives(similarity: Tensor, ids: Tensor, scale: float | Tensor) -> tuple[Tensor, Tensor]:
    """For each row a wrong column, for each column a wrong row, drawn with probability softmax(scale · similarity).

    similarity (B, B), ids (B,) -> column of each row (B,), row of each column (B,). Equal ids are never drawn.
    """
    same = ids[:, None] == ids[None, :]
    if bool(same.all(1).any()):
        raise ValueError(f"a batch of {len(ids)} with one image has no negative pair: use a larger batch")
    logits = (scale * similarity.float()).masked_fill(same, float("-inf"))
    columns = torch.multinomial(logits.softmax(1), 1).squeeze(1)
    rows = torch.multinomial(logits.T.softmax(1), 1).squeeze(1)
    return columns, rows


def matching_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Binary cross-entropy of match logits, positives (P,) and negatives (N,) weighing half each -> ()."""
    of_positives = softplus(-positive.float()).mean()
    of_negatives = softplus(negative.float()).mean()
    return 0.5 * (of_positives + of_negatives)
