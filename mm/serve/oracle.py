"""What could have been: the most requests that any rule could have answered in time, of a trace known in advance."""

import numpy as np

from mm.serve.simulate import Cost
from mm.serve.traces import Trace


def most_in_time(trace: Trace, cost: Cost, deadline: float, size: int) -> int:
    """How many requests can be answered in time by batches that are first in, first out.

    A dynamic programme over the requests in their order: each is skipped, or leaves in a batch with those that follow
    it, which begins when the engine is free and the last of them has come. Of all ways to come to a request only those
    go on that no other beats in both, the time at which the engine is free and the answers that were in time.

    Args:
        trace: N requests.
        cost: of batches.
        deadline: seconds.
        size: of a batch at most.
    """
    count = len(trace.times)
    ways: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(count + 1)]
    ways[0].append((np.zeros(1), np.zeros(1, dtype=int)))
    for first in range(count):
        free, answered = _unbeaten(ways[first], trace.times[first])
        ways[first] = []
        ways[first + 1].append((free, answered))
        longest = np.maximum.accumulate(trace.tokens[first : first + size])
        due = trace.times[first] + deadline
        for items, wide in enumerate(longest.tolist(), start=1):
            last = first + items - 1
            if trace.times[last] > due:
                break
            done = np.maximum(free, trace.times[last]) + cost.seconds(wide, items)
            kept = done <= due + 1e-12
            if kept.any():
                ways[last + 1].append((done[kept], answered[kept] + items))
    return int(max(answered.max() for _, answered in ways[count]))


def _unbeaten(ways: list[tuple[np.ndarray, np.ndarray]], arrival: float) -> tuple[np.ndarray, np.ndarray]:
    """Times and answers of the ways that are left; that the engine is free before the next arrival is worth nothing."""
    free = np.maximum(np.concatenate([way[0] for way in ways]), arrival)
    answered = np.concatenate([way[1] for way in ways])
    order = np.lexsort((-answered, free))
    free, answered = free[order], answered[order]
    better = np.maximum.accumulate(answered)
    kept = np.concatenate([[True], answered[1:] > better[:-1]])
    return free[kept], answered[kept]
