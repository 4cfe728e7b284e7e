"""The matching term, binary over pairs. Negatives are drawn where the global similarity is high
(ALBEF, Li et al. 2021)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from kernels.draws import uniform


@dataclass
class Negatives:
    """columns (B,) int64, a wrong column for each row; rows (B,) int64, a wrong row for each column; of each whether
    there was one to draw, (B,) bool: where there was not, it means nothing."""

    columns: Tensor
    rows: Tensor
    of_row: Tensor
    of_column: Tensor


def hard_negatives(
    similarity: Tensor,
    ids: Tensor,
    scale: float | Tensor,
    draws: torch.Generator | None = None,
    real: Tensor | None = None,
) -> Negatives:
    """For each row a wrong column, for each column a wrong row, drawn with probability softmax(scale · similarity).

    similarity (B, B), ids (B,); equal ids are never drawn. draws: as `kernels.draws.uniform` takes them. real (B,)
    bool: the rows and columns that may be drawn; None for all.
    """
    wrong = ids[:, None] != ids[None, :]
    if real is not None:
        wrong = wrong & real[:, None] & real
    logits = (scale * similarity.float()).masked_fill(~wrong, torch.finfo(torch.float32).min)
    columns = sampled(logits.softmax(1), draws)
    rows = sampled(logits.T.softmax(1), draws)
    of_row = wrong.gather(1, columns[:, None]).squeeze(1)
    of_column = wrong.T.gather(1, rows[:, None]).squeeze(1)
    return Negatives(columns, rows, of_row, of_column)


def sampled(probability: Tensor, draws: torch.Generator | None = None) -> Tensor:
    """probability (B, S) -> (B,) int64, of each row a place, drawn by one number: never one of probability zero."""
    cumulative = probability.double().cumsum(1)
    chance = uniform((len(probability), 1), draws, probability.device, torch.float64)
    return (cumulative <= chance * cumulative[:, -1:]).sum(1)


def matching_loss(positive: Tensor, negative: Tensor, real: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of match logits, positives (P,) and negatives (N,) weighing half each -> ().

    real: (P + N,) bool, the logits that count; None for all.
    """
    of_positives = softplus(-positive.float())
    of_negatives = softplus(negative.float())
    if real is None:
        return 0.5 * (of_positives.mean() + of_negatives.mean())
    right, wrong = real.split([len(positive), len(negative)])
    return 0.5 * (mean_of(of_positives, right) + mean_of(of_negatives, wrong))


def mean_of(values: Tensor, real: Tensor) -> Tensor:
    """The mean () of those of values (N,) that are real, (N,) bool; 0 of none."""
    return (values * real).sum() / real.sum().clamp(min=1)
