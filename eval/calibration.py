"""From scores to decisions: a threshold and probabilities, fitted on one split, and how far off they are on another."""

from dataclasses import dataclass

import numpy as np

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Fitted on a validation split."""

    threshold: float
    """A pair is a match at score >= threshold."""
    slope: float
    """A match's probability is sigmoid(slope * score + offset)."""
    offset: float

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """That these pairs are matches, of the shape of the scores."""
        return _sigmoid(self.slope * scores + self.offset)


def calibrate(matched: np.ndarray, unmatched: np.ndarray) -> Calibration:
    """The threshold of the best balanced accuracy, and Platt's logistic fit (Platt 1999).

    Args:
        matched: (P,) scores of matches of a validation split.
        unmatched: (R,) scores of its non-matches.
    """
    scores = np.concatenate([matched, unmatched]).astype(np.float64)
    label = np.concatenate([np.ones(len(matched)), np.zeros(len(unmatched))])
    slope, offset = _logistic_fit(scores, label)
    return Calibration(_best_threshold(scores, label), slope, offset)


def _best_threshold(scores: np.ndarray, label: np.ndarray) -> float:
    """Where the share of matches above minus that of non-matches is largest: half way to the next lower score.

    Args:
        scores: (Q,).
        label: (Q,) 1 for a match, 0 for a non-match.
    """
    order = np.argsort(-scores, kind="stable")
    in_order = scores[order]
    positives = label.sum()
    weight = np.where(label[order] == 1, 1 / positives, -1 / (len(label) - positives))
    gain = np.cumsum(weight)
    last = np.append(np.diff(in_order) != 0, True)  # a threshold cannot part equal scores
    cuts = np.flatnonzero(last)
    cut = int(cuts[gain[cuts].argmax()])
    below = in_order[min(cut + 1, len(scores) - 1)]
    return float((in_order[cut] + below) / 2)


def _logistic_fit(scores: np.ndarray, label: np.ndarray, steps: int = 50) -> tuple[float, float]:
    """Newton's method on standardized scores, with Platt's smoothed targets so that separable data stay finite.

    Args:
        scores: (Q,).
        label: (Q,) 1 for a match, 0 for a non-match.
        steps: at most.

    Returns:
        slope and offset in the unit of the scores.
    """
    centre = scores.mean()
    spread = max(float(scores.std()), 1e-12)
    standard = (scores - centre) / spread
    x = np.stack([standard, np.ones(len(scores))], 1)
    positives = label.sum()
    negatives = len(label) - positives
    target = np.where(label == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    weight = np.zeros(2)
    for _ in range(steps):
        p = _sigmoid(x @ weight)
        curvature = p * (1 - p)
        hessian = (x * curvature[:, None]).T @ x + 1e-6 * np.eye(2)
        gradient = x.T @ (target - p)
        step = np.linalg.solve(hessian, gradient)
        weight += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    slope = weight[0] / spread
    offset = weight[1] - weight[0] * centre / spread
    return float(slope), float(offset)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))


def calibration_error(probability: np.ndarray, label: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017).

    Args:
        probability: (Q,) that a pair is a match.
        label: (Q,) whether it is.

    Returns:
        the mean over 15 equal-width bins of |confidence - frequency|, weighted by their size.
    """
    together = np.zeros(len(label), dtype=np.int64)
    one_draw = np.ones((1, 1))
    return float(resampled_calibration_error(probability, label, together, one_draw)[0])


def resampled_calibration_error(
    probability: np.ndarray, label: np.ndarray, image: np.ndarray, draws: np.ndarray
) -> np.ndarray:
    """Bootstrap distribution of `calibration_error`.

    Args:
        probability: (Q,) that a pair is a match.
        label: (Q,) whether it is.
        image: (Q,) in 0 .. I-1, the image of each pair.
        draws: (S, I), see `Bootstrap.draws`.

    Returns:
        (S,).
    """
    images = draws.shape[1]
    where = np.minimum((probability * BINS).astype(int), BINS - 1)
    cell = image * BINS + where
    gaps = np.bincount(cell, weights=probability - label, minlength=images * BINS)
    pairs = np.bincount(image, minlength=images)
    by_bin = np.abs(draws @ gaps.reshape(images, BINS))
    return by_bin.sum(1) / (draws @ pairs)
