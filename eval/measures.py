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
    """P positives of Q queries. query, greater, tied: (P,) int64, sorted by (query, greater); positives: (Q,) int64."""

    query: np.ndarray
    greater: np.ndarray
    tied: np.ndarray
    positives: np.ndarray

    @classmethod
    def of(cls, query: np.ndarray, greater: np.ndarray, tied: np.ndarray, queries: int) -> "Placed":
        """From pairs in any order. Raises ValueError when a query has no positive."""
        positives = np.bincount(query, minlength=queries)
        if queries == 0 or not positives.all():
            missing = int((positives == 0).argmax()) if queries else 0
            raise ValueError(
                f"query {missing} has no match in the gallery ({int((positives == 0).sum())} of {queries}"
                " do not): leave such queries out, or add their matches"
            )
        order = np.lexsort((greater, query))
        return cls(query[order], greater[order], tied[order], positives)

    @property
    def first(self) -> np.ndarray:
        """(Q,) position of every query's best positive."""
        return np.concatenate([[0], np.cumsum(self.positives)[:-1]])

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(P,) -> (Q,) sum over the positives of each query."""
        return np.bincount(self.query, weights=values, minlength=len(self.positives))

    def level(self) -> np.ndarray:
        """(Q,) how many positives are level with the best one."""
        return self.sums((self.greater == self.greater[self.first][self.query]).astype(float)).astype(np.int64)


def best_rank(placed: Placed) -> np.ndarray:
    """(Q,) expected rank, from 1, of the best positive."""
    greater, tied = placed.greater[placed.first], placed.tied[placed.first]
    return greater + (tied + 1) / (placed.level() + 1)


def hit_at(placed: Placed, k: int) -> np.ndarray:
    """(Q,) probability that at least one positive is among the top k (any-hit recall)."""
    greater, tied, level = placed.greater[placed.first], placed.tied[placed.first], placed.level()
    slots = np.clip(k - greater, 0, tied)
    miss = np.ones(len(greater))
    for i in range(int(slots.max(initial=0))):
        # Drawing the tied items one by one: the (i+1)-th is not a positive either.
        drawn = i < slots
        miss[drawn] *= np.clip(tied[drawn] - level[drawn] - i, 0, None) / (tied[drawn] - i)
    return 1.0 - miss


def true_recall_at(placed: Placed, k: int) -> np.ndarray:
    """(Q,) expected share of the positives that is among the top k."""
    return placed.sums(np.clip((k - placed.greater) / placed.tied, 0.0, 1.0)) / placed.positives


def r_precision(placed: Placed) -> np.ndarray:
    """(Q,) expected share of positives among the top R, R the query's number of positives."""
    r = placed.positives[placed.query]
    return placed.sums(np.clip((r - placed.greater) / placed.tied, 0.0, 1.0)) / placed.positives


def map_at_r(placed: Placed) -> np.ndarray:
    """(Q,) expected mAP@R (Musgrave et al., ECCV 2020): mean over r = 1..R of precision@r where item r is positive."""
    new = np.ones(len(placed.query), dtype=bool)
    new[1:] = (np.diff(placed.query) != 0) | (np.diff(placed.greater) != 0)
    start = np.flatnonzero(new)
    members = np.diff(np.append(start, len(new)))
    query, greater, tied = placed.query[start], placed.greater[start], placed.tied[start]
    above = start - placed.first[query]
    r, total = placed.positives[query], np.zeros(len(start))
    depth = np.clip(r - greater, 0, tied)
    for i in range(int(depth.max(initial=0))):
        inside = i < depth
        others = i * (members[inside] - 1) / np.maximum(tied[inside] - 1, 1)
        precision = (above[inside] + 1 + others) / (greater[inside] + i + 1)
        total[inside] += members[inside] / tied[inside] * precision
    return np.bincount(query, weights=total, minlength=len(placed.positives)) / placed.positives
