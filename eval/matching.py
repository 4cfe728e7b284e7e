"""Image-text matching accuracy, defined: which pairs, which threshold, which negatives.

A number such as "92.3 % matching accuracy" means nothing before these are said. Here: (a) balanced binary matching with
random negatives; (b) the same with hard negatives drawn from the top 20 of a named frozen retriever, with everything
that ECCV Caption or CxC calls a match skipped; the threshold and the calibration are fitted on a validation split
and reported; (c) forced choice between a match and a non-match. (d) SugarCrepe is in `eval.sugar_crepe`.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from eval.intervals import Interval, image_draws, interval, resampled_means

HARD_FROM = 20
Known = Collection[tuple[int, int]]


@dataclass(frozen=True)
class PairSet:
    """One non-match for every match: image, negative (P,) positions in the images, text (P,) positions in the captions.

    Caption text[i] belongs to image[i] and not to negative[i]. `negatives` says where they are from.
    """

    image: np.ndarray
    text: np.ndarray
    negative: np.ndarray
    negatives: str


@dataclass(frozen=True)
class Calibration:
    """Fitted on a validation split: a match at score >= threshold; probability = sigmoid(slope * score + offset)."""

    threshold: float
    slope: float
    offset: float

    def probability(self, scores: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-np.clip(self.slope * scores + self.offset, -60, 60)))


@dataclass(frozen=True)
class MatchingResult:
    """Balanced matching: accuracy, AUC, forced_choice and calibration_error (expected, 15 bins) in percent.

    `intervals` holds a 95 % bootstrap interval over images for each of the four, by name. Resampling only adds to a
    calibration error, so its distribution is moved back onto the value. The threshold is fixed, and has no interval.
    """

    accuracy: float
    auc: float
    forced_choice: float
    calibration_error: float
    intervals: dict[str, Interval]
    threshold: float
    pairs: int
    negatives: str

    def metrics(self) -> dict[str, float]:
        """Flat names to numbers."""
        names = ("accuracy", "auc", "forced_choice", "calibration_error", "threshold")
        return {name: getattr(self, name) for name in names}


def random_pairs(
    image_ids: np.ndarray,
    text_ids: np.ndarray,
    *,
    known: Known = (),
    caption_ids: np.ndarray | None = None,
    seed: int = 0,
) -> PairSet:
    """(a): every caption with its image and with one image drawn at random among those it does not describe.

    known: (image id, caption id) pairs that are matches in any ground truth (`GroundTruth.positives`).
    """
    everything = np.broadcast_to(np.arange(len(image_ids)), (len(text_ids), len(image_ids)))
    return _draw(image_ids, text_ids, everything, "random", known, caption_ids, seed)


def hard_pairs(
    image_ids: np.ndarray,
    text_ids: np.ndarray,
    shortlist: np.ndarray,
    retriever: str,
    *,
    known: Known = (),
    caption_ids: np.ndarray | None = None,
    seed: int = 0,
) -> PairSet:
    """(b): the non-match is drawn from `shortlist` (M, 20): positions of the images that the frozen `retriever` ranks
    first for each caption. Captions whose whole shortlist is matches are skipped. Raises ValueError without a name."""
    if not retriever:
        raise ValueError("hard negatives need the name of the frozen retriever that chose them")
    if shortlist.shape[0] != len(text_ids):
        raise ValueError(f"the shortlist is for {shortlist.shape[0]} captions, not {len(text_ids)}")
    return _draw(image_ids, text_ids, shortlist, f"top {shortlist.shape[1]} of {retriever}", known, caption_ids, seed)


def calibrate(matched: np.ndarray, unmatched: np.ndarray) -> Calibration:
    """The threshold of the best balanced accuracy and Platt's logistic fit, on validation scores (P,) and (R,)."""
    scores = np.concatenate([matched, unmatched]).astype(np.float64)
    label = np.concatenate([np.ones(len(matched)), np.zeros(len(unmatched))])
    order = np.argsort(-scores, kind="stable")
    gain = np.cumsum(np.where(label[order] == 1, 1 / len(matched), -1 / len(unmatched)))
    last = np.append(np.diff(scores[order]) != 0, True)  # a threshold cannot part equal scores
    cut = int(np.flatnonzero(last)[gain[last].argmax()])
    below = scores[order][cut + 1] if cut + 1 < len(scores) else scores[order][cut]
    slope, offset = _logistic_fit(scores, label)
    return Calibration(float((scores[order][cut] + below) / 2), slope, offset)


def matching(
    matched: np.ndarray,
    unmatched: np.ndarray,
    pairs: PairSet,
    calibration: Calibration,
    *,
    samples: int = 1000,
    seed: int = 0,
) -> MatchingResult:
    """Evaluate test scores (P,) of the pairs with a calibration from another split. Intervals are over images."""
    right = ((matched >= calibration.threshold).astype(float) + (unmatched < calibration.threshold)) / 2
    choice = forced_choice(matched, unmatched)
    label = np.repeat([1.0, 0.0], [len(matched), len(unmatched)])
    probability = calibration.probability(np.concatenate([matched, unmatched]))
    ids, position = np.unique(pairs.image, return_inverse=True)
    draws = image_draws(len(ids), samples, seed)
    means = resampled_means(np.stack([right, choice], 1), position, draws)
    error = calibration_error(probability, label)
    errors = resampled_calibration_error(probability, label, np.tile(position, 2), draws)
    spread = {
        "accuracy": means[:, 0],
        "auc": resampled_auc(matched, unmatched, position, draws),
        "forced_choice": means[:, 1],
        "calibration_error": np.maximum(errors - errors.mean() + error, 0),
    }
    return MatchingResult(
        float(100 * right.mean()),
        100 * auc(matched, unmatched),
        float(100 * choice.mean()),
        100 * error,
        {name: interval(100 * s) for name, s in spread.items()},
        calibration.threshold,
        len(matched),
        pairs.negatives,
    )


def forced_choice(matched: np.ndarray, unmatched: np.ndarray) -> np.ndarray:
    """(c) (P,): 1 where the match scores higher than its non-match, one half where they tie, else 0."""
    return (matched > unmatched) + 0.5 * (matched == unmatched)


def auc(matched: np.ndarray, unmatched: np.ndarray) -> float:
    """Chance that a random match scores above a random non-match, ties one half (Mann-Whitney)."""
    ranks = rankdata(np.concatenate([matched, unmatched]))[: len(matched)]
    return float((ranks.mean() - (len(matched) + 1) / 2) / len(unmatched))


def resampled_auc(matched: np.ndarray, unmatched: np.ndarray, image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Bootstrap distribution of `auc`: scores (P,), image (P,) in 0 .. I-1 of each pair, draws (S, I) -> (S,)."""
    order = np.argsort(unmatched)
    low, high = (np.searchsorted(unmatched[order], matched, side) for side in ("left", "right"))  # type: ignore[call-overload]
    found = np.empty(len(draws))
    for sample, draw in enumerate(draws):
        weight = draw[image].astype(np.float64)
        below = np.concatenate([[0.0], np.cumsum(weight[order])])
        found[sample] = weight @ (below[low] + below[high]) / 2 / weight.sum() ** 2
    return found


def calibration_error(probability: np.ndarray, label: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): mean over equal-width bins of |confidence - frequency|, by size."""
    everything = np.zeros(len(label), dtype=np.int64)
    return float(resampled_calibration_error(probability, label, everything, np.ones((1, 1)), bins)[0])


def resampled_calibration_error(
    probability: np.ndarray, label: np.ndarray, image: np.ndarray, draws: np.ndarray, bins: int = 15
) -> np.ndarray:
    """Bootstrap distribution of `calibration_error`: probability, label, image (Q,), draws (S, I) -> (S,)."""
    images = draws.shape[1]
    where = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = np.bincount(image * bins + where, weights=probability - label, minlength=images * bins)
    return np.abs(draws @ gaps.reshape(images, bins)).sum(1) / (draws @ np.bincount(image, minlength=images))


def _draw(
    image_ids: np.ndarray,
    text_ids: np.ndarray,
    candidates: np.ndarray,
    name: str,
    known: Known,
    caption_ids: np.ndarray | None,
    seed: int,
) -> PairSet:
    """One candidate per caption that is no match, by drawing until one is no match; captions with none are skipped."""
    if known and caption_ids is None:
        raise ValueError("known matches are named by caption id: pass caption_ids too")
    generator, matches = np.random.default_rng(seed), _known_by_caption(known)
    sorter = np.argsort(image_ids)
    own = sorter[np.searchsorted(image_ids[sorter], text_ids)]
    image, text, negative = [], [], []
    for at in range(len(text_ids)):
        wrong = {int(text_ids[at])} | (matches.get(int(caption_ids[at]), set()) if caption_ids is not None else set())
        for choice in _in_random_order(generator, candidates[at]):
            if int(image_ids[choice]) not in wrong:
                image.append(own[at])
                text.append(at)
                negative.append(int(choice))
                break
    if not text:
        raise ValueError("no caption has a non-match among its candidates")
    return PairSet(np.array(image), np.array(text), np.array(negative), name)


def _in_random_order(generator: np.random.Generator, candidates: np.ndarray, limit: int = 64) -> np.ndarray:
    """A long list is sampled, not permuted: that `limit` draws are all matches does not happen by chance."""
    if len(candidates) <= limit:
        return generator.permutation(candidates)
    return candidates[generator.integers(0, len(candidates), limit)]


def _known_by_caption(known: Known) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for image, caption in known:
        found.setdefault(caption, set()).add(image)
    return found


def _logistic_fit(scores: np.ndarray, label: np.ndarray, steps: int = 50) -> tuple[float, float]:
    """Newton's method on standardized scores, with Platt's smoothed targets so that separable data stay finite."""
    centre, spread = scores.mean(), max(float(scores.std()), 1e-12)
    x = np.stack([(scores - centre) / spread, np.ones(len(scores))], 1)
    positives, negatives = label.sum(), len(label) - label.sum()
    target = np.where(label == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    weight = np.zeros(2)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(x @ weight, -60, 60)))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, x.T @ (target - p))
        weight += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return float(weight[0] / spread), float(weight[1] - weight[0] * centre / spread)
