"""Image-text matching accuracy, defined: which pairs, which threshold, which negatives.

A number such as "92.3 % matching accuracy" means nothing before these are said. Here: (a) balanced binary matching with
random negatives; (b) the same with hard negatives drawn from the top 20 of a named frozen retriever, with everything
that ECCV Caption or CxC calls a match skipped (`eval.pairs`); the threshold and the calibration are fitted on a
validation split (`eval.calibration`), by its random negatives and, of (b), by its hard ones too, and reported; (c)
forced choice between a match and a non-match. (d) SugarCrepe is in `eval.sugar_crepe`.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from eval.calibration import Calibration, calibrate, calibration_error, resampled_calibration_error
from eval.embeddings import Embeddings, ScoredItems, Scorer
from eval.figures import Figures
from eval.ground_truth import GroundTruth
from eval.intervals import DEFAULT_BOOTSTRAP, Bootstrap, Interval, interval, percent_interval, resampled_means
from eval.pairs import HARD_FROM, Matchable, PairSet, hard_pairs, random_pairs
from eval.protocols import Protocol, Stated
from eval.retrieval import top_k
from kernels.errors import UserError


@dataclass(frozen=True)
class MatchingResult:
    """Balanced matching, in percent."""

    accuracy: float
    """At the threshold of the validation split."""
    auc: float
    forced_choice: float
    calibration_error: float
    """Expected, 15 bins."""
    intervals: dict[str, Interval]
    """95 % bootstrap intervals over images of the four above. Resampling only adds to a calibration error, so its
    distribution is moved back onto the value."""
    threshold: float
    """Fixed, so without an interval."""
    pairs: int
    negatives: str

    def metrics(self) -> dict[str, float]:
        """Flat names to numbers."""
        names = ("accuracy", "auc", "forced_choice", "calibration_error", "threshold")
        return {name: getattr(self, name) for name in names}


def evaluate_matching(
    items: ScoredItems,
    validation: ScoredItems,
    stated: Stated,
    *,
    retriever: ScoredItems | None = None,
    ground_truth: GroundTruth | None = None,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> dict[str, Figures]:
    """Balanced matching by every scorer of the items, for the same pairs.

    Args:
        items: what is evaluated.
        validation: another split, with the same scorers: threshold and calibration are fitted on it.
        stated: for the protocols.
        retriever: a frozen retriever's embeddings of the items, which chooses hard negatives; it may have more.
        ground_truth: its matches are never used as negatives.
        bootstrap: of the intervals; its seed is also that of the negatives.

    Returns:
        `random/<scorer>` and, with a retriever, `hard/<scorer>`: the threshold is that of the validation split's random
        negatives. Where the retriever has the validation split's items too, `hard_fitted/<scorer>`: that of hard ones.

    Raises:
        ValueError: when the retriever lacks the items, or where the items lack the ids of the ground truth.
    """
    items = items.paired()
    validation = validation.paired()
    own = _matchable(items, ground_truth)
    others = _matchable(validation, None)
    fitting = random_pairs(others, bootstrap.seed)
    # Of each kind the pairs that are judged, and those that fix the threshold.
    chosen = {"random": (random_pairs(own, bootstrap.seed), fitting)}
    if retriever is not None:
        shortlist = _shortlist(retriever, items.embeddings)
        if shortlist is None:
            raise UserError("the retriever's embeddings lack images or captions of what is evaluated")
        hard = hard_pairs(own, shortlist, retriever.name, bootstrap.seed)
        chosen["hard"] = (hard, fitting)
        shortlist = _shortlist(retriever, validation.embeddings)
        if shortlist is not None:
            chosen["hard_fitted"] = (hard, hard_pairs(others, shortlist, retriever.name, bootstrap.seed))
    validation_scorers = validation.scorers()
    found = {}
    for name, score in items.scorers().items():
        calibrations = {}
        for kind, (pairs, fixing) in chosen.items():
            if fixing.negatives not in calibrations:
                calibrations[fixing.negatives] = calibrate(*_scores(validation_scorers[name], fixing))
            result = matching(*_scores(score, pairs), pairs, calibrations[fixing.negatives], bootstrap)
            where = validation.name if fixing is fitting else f"{validation.name} by negatives of the same kind"
            task = (
                f"binary matching by {name}, as many non-matches ({pairs.negatives}) as matches,"
                f" threshold fixed on {where}"
            )
            protocol = _protocol(items, pairs, stated, ground_truth, task)
            found[f"{kind}/{name}"] = Figures(protocol, result.metrics(), result.intervals)
    return found


def _matchable(items: ScoredItems, ground_truth: GroundTruth | None) -> Matchable:
    """What pairs of these items are drawn from."""
    e = items.embeddings
    if ground_truth is None:
        return Matchable(e.image_ids, e.caption_image_ids)
    if e.caption_ids is None:
        raise UserError("to skip known matches among the negatives, embeddings need `caption_ids`")
    known = ground_truth.positives(e.caption_ids, e.image_ids)
    return Matchable(e.image_ids, e.caption_image_ids, e.caption_ids, known)


def _shortlist(retriever: ScoredItems, items: Embeddings) -> np.ndarray | None:
    """Of each caption of the items the positions (M, 20) of those of their images that the retriever ranks first; None
    where it lacks one of them."""
    other = retriever.embeddings
    images = _positions(other.image_ids, items.image_ids)
    if other.caption_ids is not None and items.caption_ids is not None:
        captions = _positions(other.caption_ids, items.caption_ids)
    elif np.array_equal(other.caption_image_ids, items.caption_image_ids):
        captions = np.arange(len(items.text))
    else:
        captions = None
    if images is None or captions is None:
        return None
    found = top_k(other.text[captions], other.image[images], min(HARD_FROM, len(images)))
    return found[1].numpy()


def _positions(ids: np.ndarray, asked: np.ndarray) -> np.ndarray | None:
    """Where each of asked (M,) stands in ids (N,); None where one does not."""
    if not np.isin(asked, ids).all():
        return None
    order = np.argsort(ids)
    return order[np.searchsorted(ids[order], asked)]


def _scores(score: Scorer, pairs: PairSet) -> tuple[np.ndarray, np.ndarray]:
    """(P,) scores of the matches and of the non-matches."""
    return score(pairs.image, pairs.text), score(pairs.negative, pairs.text)


def _protocol(
    items: ScoredItems, pairs: PairSet, stated: Stated, ground_truth: GroundTruth | None, task: str
) -> Protocol:
    extra = ground_truth.extra if ground_truth else {}
    truth = "+".join(["original", *extra])
    asked = items.embeddings.caption_image_ids[pairs.text]
    return Protocol.of_ids(items.embeddings.image_ids, asked, stated, ground_truth=truth, recall="none", task=task)


def matching(
    matched: np.ndarray,
    unmatched: np.ndarray,
    pairs: PairSet,
    calibration: Calibration,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> MatchingResult:
    """Evaluate scores with a calibration from another split.

    Args:
        matched: (P,) scores of the matches.
        unmatched: (P,) scores of the non-matches.
        pairs: the P pairs.
        calibration: fitted on a validation split.
        bootstrap: over images.
    """
    accepted = (matched >= calibration.threshold).astype(float)
    rejected = unmatched < calibration.threshold
    right = (accepted + rejected) / 2
    choice = forced_choice(matched, unmatched)
    label = np.repeat([1.0, 0.0], [len(matched), len(unmatched)])
    probability = calibration.probability(np.concatenate([matched, unmatched]))
    ids, position = np.unique(pairs.image, return_inverse=True)
    draws = bootstrap.draws(len(ids))
    means = resampled_means(np.stack([right, choice], 1), position, draws)
    error = calibration_error(probability, label)
    errors = resampled_calibration_error(probability, label, np.tile(position, 2), draws)
    spread = {
        "accuracy": means[:, 0],
        "auc": resampled_auc(matched, unmatched, position, draws),
        "forced_choice": means[:, 1],
        "calibration_error": np.maximum(errors - errors.mean() + error, 0),
    }
    intervals = {name: percent_interval(100 * samples, len(ids)) for name, samples in spread.items()}
    intervals["calibration_error"] = interval(100 * spread["calibration_error"])  # no share of images
    return MatchingResult(
        accuracy=float(100 * right.mean()),
        auc=100 * auc(matched, unmatched),
        forced_choice=float(100 * choice.mean()),
        calibration_error=100 * error,
        intervals=intervals,
        threshold=calibration.threshold,
        pairs=len(matched),
        negatives=pairs.negatives,
    )


def forced_choice(matched: np.ndarray, unmatched: np.ndarray) -> np.ndarray:
    """(c) (P,): 1 where the match scores higher than its non-match, one half where they tie, else 0."""
    return (matched > unmatched) + 0.5 * (matched == unmatched)


def auc(matched: np.ndarray, unmatched: np.ndarray) -> float:
    """Chance that a random match scores above a random non-match, ties one half (Mann-Whitney)."""
    count = len(matched)
    ranks = rankdata(np.concatenate([matched, unmatched]))[:count]
    return float((ranks.mean() - (count + 1) / 2) / len(unmatched))


def resampled_auc(matched: np.ndarray, unmatched: np.ndarray, image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Bootstrap distribution of `auc`.

    Args:
        matched: (P,) scores of the matches.
        unmatched: (P,) scores of the non-matches.
        image: (P,) in 0 .. I-1, the image of each pair.
        draws: (S, I), see `Bootstrap.draws`.

    Returns:
        (S,).
    """
    order = np.argsort(unmatched)
    in_order = unmatched[order]
    low = np.searchsorted(in_order, matched, "left")
    high = np.searchsorted(in_order, matched, "right")
    found = np.empty(len(draws))
    for sample, draw in enumerate(draws):
        weight = draw[image].astype(np.float64)
        below = np.concatenate([[0.0], np.cumsum(weight[order])])
        # A tie counts one half: the mean of what is strictly below and what is not above.
        found[sample] = weight @ (below[low] + below[high]) / 2 / weight.sum() ** 2
    return found
