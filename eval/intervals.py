"""How sure a number is: bootstrap intervals over images and paired tests between two runs on the same items.

Captions of one image are not independent, so images are drawn, not captions (a cluster bootstrap); both directions of a
sum such as RSUM move together because they use the same draws. Percentile intervals (Efron and Tibshirani, 1993).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Interval = tuple[float, float]


def image_draws(images: int, samples: int = 1000, seed: int = 0) -> np.ndarray:
    """(samples, images) float32: how often each image is drawn in each bootstrap sample."""
    if images < 1:
        raise ValueError("an interval needs at least one image")
    if samples < 1:
        raise ValueError(f"an interval needs at least one bootstrap sample, not {samples}")
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, images, (samples, images), dtype=np.int32)
    picks += np.arange(samples, dtype=np.int32)[:, None] * images
    return np.bincount(picks.ravel(), minlength=samples * images).reshape(samples, images).astype(np.float32)


def resampled_means(values: np.ndarray, image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Bootstrap distribution of means. values (Q, V) per query, image (Q,) in 0 .. I-1, draws (S, I) -> (S, V)."""
    images = draws.shape[1]
    sums = np.stack([np.bincount(image, weights=column, minlength=images) for column in values.T], 1)
    weight = draws @ np.bincount(image, minlength=images).astype(np.float32)
    return (draws @ sums.astype(np.float32)) / np.maximum(weight, 1)[:, None]


def interval(resampled: np.ndarray, level: float = 0.95) -> Interval:
    """The central `level` of a bootstrap distribution (S,)."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_intervals(
    values: Mapping[str, np.ndarray], image: np.ndarray, *, samples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """95 % interval of the mean of each per-query array (Q,); image (Q,) ids say which queries go together."""
    ids, position = np.unique(image, return_inverse=True)
    means = resampled_means(np.stack(list(values.values()), 1), position, image_draws(len(ids), samples, seed))
    return {name: interval(means[:, index]) for index, name in enumerate(values)}


@dataclass(frozen=True)
class PairedTest:
    """Difference b - a of a mean over the same items, its 95 % bootstrap interval and a two-sided p-value."""

    difference: float
    low: float
    high: float
    p: float


def paired_test(a: np.ndarray, b: np.ndarray, image: np.ndarray, *, samples: int = 5000, seed: int = 0) -> PairedTest:
    """Are two runs different? a, b (Q,) values of the same queries in the same order; image (Q,) ids.

    The p-value is a sign-flip permutation test over images (Fisher): under no difference, swapping the two runs on any
    image changes nothing. The observed split counts as one of the permutations, so p is never 0.
    """
    if a.shape != b.shape or a.shape != image.shape:
        raise ValueError(f"a paired test needs the same items in both runs, not {a.shape} and {b.shape}")
    ids, position = np.unique(image, return_inverse=True)
    difference = np.bincount(position, weights=b - a, minlength=len(ids))
    means = resampled_means((b - a)[:, None], position, image_draws(len(ids), min(samples, 1000), seed))[:, 0]
    generator = np.random.default_rng(seed)
    observed, extreme, chunk = abs(difference.sum()), 0, 500
    for start in range(0, samples, chunk):
        signs = generator.integers(0, 2, (min(chunk, samples - start), len(ids)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ difference) >= observed - 1e-9).sum())
    return PairedTest(float((b - a).mean()), *interval(means), (extreme + 1) / (samples + 1))
