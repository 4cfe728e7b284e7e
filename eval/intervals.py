"""How sure a number is: bootstrap intervals over images and paired tests between two runs on the same items.

Captions of one image are not independent, so images are drawn, not captions (a cluster bootstrap). Both directions of a
sum such as RSUM move together because they use the same draws. Percentile intervals (Efron and Tibshirani, 1993).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

NORMAL_95 = 1.959963984540054
"""Standard deviations of a normal distribution that hold 95 %."""
SAME = 1e-4
"""Percentages that differ by no more are equal: means of float32 are no closer."""
Interval = tuple[float, float]
"""Lower and upper end, in the unit of the value."""


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made."""

    samples: int = 1000
    """Bootstrap samples."""
    seed: int = 0
    """Seed of the draws, and of whatever else an evaluation draws."""

    def draws(self, images: int) -> np.ndarray:
        """How often each image is drawn in each bootstrap sample.

        Args:
            images: number of images I.

        Returns:
            (samples, I) float32; each row sums to I.

        Raises:
            ValueError: without an image, or without a sample.
        """
        if images < 1:
            raise ValueError("an interval needs at least one image")
        if self.samples < 1:
            raise ValueError(f"an interval needs at least one bootstrap sample, not {self.samples}")
        generator = np.random.default_rng(self.seed)
        picks = generator.integers(0, images, (self.samples, images), dtype=np.int32)
        # Every sample counts in a range of its own, so that one bincount serves all samples.
        offsets = np.arange(self.samples, dtype=np.int32) * images
        picks += offsets[:, None]
        counts = np.bincount(picks.ravel(), minlength=self.samples * images)
        return counts.reshape(self.samples, images).astype(np.float32)


DEFAULT_BOOTSTRAP = Bootstrap()


def resampled_means(values: np.ndarray, image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Bootstrap distribution of means over queries.

    Args:
        values: (Q, V), V values of each query.
        image: (Q,) in 0 .. I-1, the image of each query.
        draws: (S, I), see `Bootstrap.draws`.

    Returns:
        (S, V) float32, the mean of each value in each sample.
    """
    images = draws.shape[1]
    sums = [np.bincount(image, weights=column, minlength=images) for column in values.T]
    queries = np.bincount(image, minlength=images)
    drawn_sums = draws @ np.stack(sums, 1).astype(np.float32)
    drawn_queries = draws @ queries.astype(np.float32)
    return drawn_sums / np.maximum(drawn_queries, 1)[:, None]


def interval(resampled: np.ndarray, level: float = 0.95) -> Interval:
    """The central `level` of a bootstrap distribution (S,)."""
    outside = (1 - level) / 2
    low, high = np.quantile(resampled, [outside, (1 + level) / 2])
    return float(low), float(high)


def percent_interval(resampled: np.ndarray, images: int) -> Interval:
    """95 % interval of a percentage: that of the bootstrap, or Wilson's (1927) where all its samples agree.

    0 of 10 images is no certainty, and a bootstrap of ten misses knows nothing else.

    Args:
        resampled: bootstrap distribution (S,), in percent.
        images: that are drawn.
    """
    low, high = interval(resampled)
    if high - low > SAME:
        return low, high
    share = min(max(low / 100, 0.0), 1.0)
    shrunk = images + NORMAL_95**2
    middle = (share * images + NORMAL_95**2 / 2) / shrunk
    half = NORMAL_95 / shrunk * np.sqrt(share * (1 - share) * images + NORMAL_95**2 / 4)
    # Rounding would leave a share of 0 or 1 outside.
    least = max(min(middle - half, share), 0)
    most = min(max(middle + half, share), 1)
    return float(100 * least), float(100 * most)


def mean_intervals(
    values: Mapping[str, np.ndarray], image: np.ndarray, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP
) -> dict[str, Interval]:
    """95 % interval of the mean of each array, see `percent_interval`.

    Args:
        values: name -> (Q,) in percent, one value a query.
        image: (Q,) ids; queries of one image are drawn together.
        bootstrap: how the intervals are made.

    Returns:
        name -> interval.
    """
    ids, position = np.unique(image, return_inverse=True)
    draws = bootstrap.draws(len(ids))
    columns = np.stack(list(values.values()), 1)
    means = resampled_means(columns, position, draws)
    return {name: percent_interval(means[:, index], len(ids)) for index, name in enumerate(values)}


@dataclass(frozen=True)
class PairedTest:
    """Difference b - a of a mean over the same items, its 95 % bootstrap interval and a two-sided p-value."""

    difference: float
    low: float
    high: float
    p: float


def paired_test(a: np.ndarray, b: np.ndarray, image: np.ndarray, *, samples: int = 5000, seed: int = 0) -> PairedTest:
    """Are two runs different?

    The p-value is a sign-flip permutation test over images (Fisher): under no difference, swapping the two runs on any
    image changes nothing. The observed split counts as one of the permutations, so p is never 0.

    Args:
        a: (Q,) values of the first run.
        b: (Q,) values of the second run, of the same queries in the same order.
        image: (Q,) ids; queries of one image flip together.
        samples: permutations; the interval takes at most 1,000 bootstrap samples.
        seed: of the permutations and of the bootstrap.

    Raises:
        ValueError: where the arrays differ in shape.
    """
    if a.shape != b.shape or a.shape != image.shape:
        raise ValueError(f"a paired test needs the same items in both runs, not {a.shape} and {b.shape}")
    ids, position = np.unique(image, return_inverse=True)
    gain = b - a
    draws = Bootstrap(min(samples, 1000), seed).draws(len(ids))
    means = resampled_means(gain[:, None], position, draws)
    low, high = interval(means[:, 0])
    by_image = np.bincount(position, weights=gain, minlength=len(ids))
    extreme = _extreme_flips(by_image, samples, seed)
    p = (extreme + 1) / (samples + 1)
    return PairedTest(float(gain.mean()), low, high, p)


def _extreme_flips(difference: np.ndarray, samples: int, seed: int, chunk: int = 500) -> int:
    """How many of `samples` random sign flips of the differences (I,) sum to at least as much as the differences do."""
    generator = np.random.default_rng(seed)
    observed = abs(difference.sum())
    extreme = 0
    for start in range(0, samples, chunk):
        rows = min(chunk, samples - start)
        flips = generator.integers(0, 2, (rows, len(difference)), dtype=np.int8)
        sums = np.abs((flips * 2 - 1) @ difference)
        extreme += int((sums >= observed - 1e-9).sum())
    return extreme
