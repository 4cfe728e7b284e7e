"""Retrieval measures as functions of where the positive pairs stand (`eval.ranks`), per query, ties in expectation.

With `greater` items above a positive and `tied` items level with it, every order of the tied items is equally likely.
Without ties each function is the textbook measure; with all scores equal it is what a random ranking scores on average
(McSherry and Najork, "Computing information retrieval performance measures efficiently in the presence of tied scores",
ECIR 2008). Queries are numbered 0 .. Q-1 and every query has at least one positive.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Placed:
    """P positives of Q queries, sorted by (query, greater)."""

    query: np.ndarray
    """(P,) int64: the query of each positive."""
    greater: np.ndarray
    """(P,) int64: items that score higher than the positive."""
    tied: np.ndarray
    """(P,) int64: items that score the same, the positive itself included."""
    positives: np.ndarray
    """(Q,) int64: how many positives each query has."""

    @classmethod
    def of(cls, query: np.ndarray, greater: np.ndarray, tied: np.ndarray, queries: int) -> "Placed":
        """From pairs in any order.

        Args:
            query: (P,) in 0 .. queries-1.
            greater: (P,), as the field.
            tied: (P,), as the field.
            queries: number of queries Q.

        Raises:
            ValueError: when a query has no positive.
        """
        positives = np.bincount(query, minlength=queries)
        alone = positives == 0
        if queries == 0 or alone.any():
            first = int(alone.argmax()) if queries else 0
            raise ValueError(
                f"query {first} has no match in the gallery ({int(alone.sum())} of {queries}"
                " do not): skip such queries, or add their matches"
            )
        order = np.lexsort((greater, query))
        return cls(query[order], greater[order], tied[order], positives)

    @property
    def first(self) -> np.ndarray:
        """(Q,) position of every query's best positive."""
        ends = np.cumsum(self.positives)
        return np.concatenate([[0], ends[:-1]])

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(P,) -> (Q,) sum over the positives of each query."""
        return np.bincount(self.query, weights=values, minlength=len(self.positives))

    def level(self) -> np.ndarray:
        """(Q,) how many positives are level with the best one."""
        best = self.greater[self.first]
        same = self.greater == best[self.query]
        return self.sums(same.astype(float)).astype(np.int64)


def best_rank(placed: Placed) -> np.ndarray:
    """Expected rank of the best positive.

    Of t tied items, l of them positive, the first positive is expected at place (t + 1) / (l + 1).

    Returns:
        (Q,) from 1.
    """
    greater = placed.greater[placed.first]
    tied = placed.tied[placed.first]
    place = (tied + 1) / (placed.level() + 1)
    return greater + place


def hit_at(placed: Placed, k: int) -> np.ndarray:
    """Any-hit recall.

    Of t tied items, l of them positive, s find a place in the top k. All s are negative with the probability
    (t - l) / t · (t - l - 1) / (t - 1) · …, a product of s factors.

    Returns:
        (Q,) probability that at least one positive is among the top k.
    """
    greater = placed.greater[placed.first]
    tied = placed.tied[placed.first]
    level = placed.level()
    slots = np.clip(k - greater, 0, tied)
    miss = np.ones(len(greater))
    for i in range(int(slots.max(initial=0))):
        # Drawing the tied items one by one: the (i+1)-th is not a positive either.
        drawn = i < slots
        remaining = tied[drawn] - i
        negatives = np.clip(tied[drawn] - level[drawn] - i, 0, None)
        miss[drawn] *= negatives / remaining
    return 1.0 - miss


def true_recall_at(placed: Placed, k: int) -> np.ndarray:
    """Recall in the sense of information retrieval.

    Each tied item is among the top k with the same probability: the places left over the items tied.

    Returns:
        (Q,) expected share of the positives that is among the top k.
    """
    inside = (k - placed.greater) / placed.tied
    found = placed.sums(np.clip(inside, 0.0, 1.0))
    return found / placed.positives


def r_precision(placed: Placed) -> np.ndarray:
    """R-Precision, R the query's number of positives.

    Returns:
        (Q,) expected share of positives among the top R.
    """
    r = placed.positives[placed.query]
    inside = (r - placed.greater) / placed.tied
    found = placed.sums(np.clip(inside, 0.0, 1.0))
    return found / placed.positives


def map_at_r(placed: Placed) -> np.ndarray:
    """mAP@R (Musgrave et al., ECCV 2020): the mean over r = 1..R of precision@r where item r is positive.

    Level positives are taken together: whichever of their tied items stands at a place, it is positive with the
    probability members / tied, and the places before it hold their share of the other members.

    Returns:
        (Q,) expected value.
    """
    start = _first_of_each_level(placed)
    members = np.diff(np.append(start, len(placed.query)))
    query = placed.query[start]
    greater = placed.greater[start]
    tied = placed.tied[start]
    above = start - placed.first[query]
    depth = np.clip(placed.positives[query] - greater, 0, tied)
    total = np.zeros(len(start))
    for i in range(int(depth.max(initial=0))):
        inside = i < depth
        # Of the i tied items drawn before, this many are expected to be positives too.
        others = i * (members[inside] - 1) / np.maximum(tied[inside] - 1, 1)
        precision = (above[inside] + 1 + others) / (greater[inside] + i + 1)
        total[inside] += members[inside] / tied[inside] * precision
    summed = np.bincount(query, weights=total, minlength=len(placed.positives))
    return summed / placed.positives


def _first_of_each_level(placed: Placed) -> np.ndarray:
    """Positions at which a group of level positives of one query begins."""
    new = np.ones(len(placed.query), dtype=bool)
    other_query = np.diff(placed.query) != 0
    other_level = np.diff(placed.greater) != 0
    new[1:] = other_query | other_level
    return np.flatnonzero(new)


def random_recall(k: int, gallery: int, matches: float) -> float:
    """Any-hit R@k, in percent, of a random order of a gallery that holds so many matches of the query on average."""
    drawn = np.arange(min(k, gallery))
    missed = np.clip(1 - matches / (gallery - drawn), 0, 1)
    return float(100 * (1 - missed.prod()))
