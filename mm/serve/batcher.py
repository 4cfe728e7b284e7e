"""Which requests leave together, and when. No clock and no threads: time is an argument.

An engine that is idle may wait for one more request. The batch leaves when that costs those who wait more than it
gains, by what batches cost and how many arrivals are to be expected; when a deadline would be missed; or when it is
full. (Deb and Serfozo 1973 show that such a control limit is optimal where arrivals are Poisson.)
"""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mm.serve.cost import CostModel
from mm.serve.forecast import Forecast

STEPS = 16
"""Times that a batch might be held until, between now and the longest that it may be."""
SHORTEST = 2e-4
"""Seconds until a batch that is held is looked at again, at least."""


@dataclass(frozen=True, eq=False)
class Item:
    """One request that waits.

    Args:
        kind: items of one kind may leave together.
        tokens: how long it is.
        arrived: when, in seconds of any clock.
        deadline: when its answer is due.
        payload: what is to be computed.
    """

    kind: str
    tokens: int
    arrived: float
    deadline: float = math.inf
    payload: Any = None


@dataclass(frozen=True)
class Decision:
    """What to do now.

    Args:
        batch: items that leave; none where there are none or waiting is better.
        expired: items whose answers would come too late, to be refused.
        again: when to ask again if nothing arrives before; None if nothing waits.
    """

    batch: tuple[Item, ...] = ()
    expired: tuple[Item, ...] = ()
    again: float | None = None


class Rule(Protocol):
    """What decides on batches."""

    def add(self, item: Item) -> None:
        """Take in an item, in order of arrival."""

    def next(self, now: float, idle_since: float) -> Decision:
        """What to do, asked when an engine is idle: after each arrival, each batch, and when the last answer says."""

    def done(self, batch: Sequence[Item], seconds: float) -> None:
        """Learn what a batch took."""


@dataclass(frozen=True)
class Limits:
    """What a batch may be.

    Args:
        size: items of a batch at most.
        delay: seconds that an item waits at most while an engine is idle.
    """

    size: int = 16
    delay: float = 0.010


class Foresight(Protocol):
    """What knows of arrivals to come, see `Forecast`."""

    def arrived(self, time: float) -> None:
        """Take an arrival into account."""

    def rate(self, now: float) -> float:
        """Arrivals a second that are to be expected."""

    def expected(self, now: float, steps: np.ndarray) -> np.ndarray:
        """How many are to be expected until each of some times (T,) after now."""


class Batcher:
    """The rule of this server.

    Args:
        limits: of batches.
        cost: what batches are guessed to cost, by kind, before any ran.
        forecast: makes what forecasts the arrivals of a kind; None for none: an idle engine takes what waits at once.
    """

    def __init__(
        self, limits: Limits, cost: Callable[[str], CostModel], forecast: Callable[[], Foresight] | None = Forecast
    ) -> None:
        self.limits = limits
        self.cost_of = cost
        self.forecast_of = forecast
        self.lanes: dict[str, deque[Item]] = {}
        self.costs: dict[str, CostModel] = {}
        self.forecasts: dict[str, Foresight] = {}

    def __len__(self) -> int:
        """How many items wait."""
        return sum(len(lane) for lane in self.lanes.values())

    def add(self, item: Item) -> None:
        """Take in an item, in order of arrival; one that comes back takes its old place."""
        if item.kind not in self.lanes:
            self.lanes[item.kind] = deque()
            self.costs[item.kind] = self.cost_of(item.kind)
            if self.forecast_of is not None:
                self.forecasts[item.kind] = self.forecast_of()
        lane = self.lanes[item.kind]
        if lane and lane[-1].deadline > item.deadline:
            insort(lane, item, key=lambda each: each.deadline)
            return
        lane.append(item)
        if item.kind in self.forecasts:
            self.forecasts[item.kind].arrived(item.arrived)

    def remove(self, item: Item) -> bool:
        """Take out an item that nobody waits for any more; False if it has left already."""
        lane = self.lanes.get(item.kind, deque())
        if item not in lane:
            return False
        lane.remove(item)
        return True

    def next(self, now: float, idle_since: float) -> Decision:
        """What an idle engine does.

        Args:
            now: seconds of the items' clock.
            idle_since: when the engine became idle.
        """
        expired = list(self._expired(now))
        waiting = [lane for lane in self.lanes.values() if lane]
        if not waiting:
            return Decision(expired=tuple(expired))
        lane = min(waiting, key=lambda each: each[0].deadline)
        batch = self._formed(lane, now)
        late = list(lane)[: lane.index(batch[0])]
        until = self._held_until(batch, now, idle_since)
        if until > now and not late:
            return Decision(expired=tuple(expired), again=until)
        left = {id(item) for item in (*batch, *late)}
        kept = [item for item in lane if id(item) not in left]
        lane.clear()
        lane.extend(kept)
        return Decision(tuple(batch), (*expired, *late))

    def joining(self, kind: str, most: int, now: float) -> Decision:
        """What may join a batch of a kind that is computed, the oldest first.

        Nothing does while items of another kind wait: an engine that others join for ever is never free for them.

        Args:
            kind: of the batch.
            most: items at most.
            now: seconds of the items' clock.
        """
        expired = tuple(self._expired(now))
        lane = self.lanes.get(kind, deque())
        if len(lane) < len(self):
            return Decision(expired=expired)
        return Decision(tuple(lane.popleft() for _ in range(min(most, len(lane)))), expired)

    def done(self, batch: Sequence[Item], seconds: float) -> None:
        """Learn what a batch took."""
        longest = max(item.tokens for item in batch)
        self.costs[batch[0].kind].learn(longest * len(batch), len(batch), seconds)

    def seconds(self, kind: str, longest: int, items: int) -> float:
        """What a batch of items is expected to take, all padded to the longest."""
        return self.costs[kind].seconds(longest * items, items)

    def _expired(self, now: float) -> Iterator[Item]:
        """Take out the first items of each lane that would be late even alone and at once."""
        for lane in self.lanes.values():
            while lane and now + self.seconds(lane[0].kind, lane[0].tokens, 1) > lane[0].deadline:
                yield lane.popleft()

    def _formed(self, lane: deque[Item], now: float) -> list[Item]:
        """The batch that would leave now: the oldest item and those that join it, unless that is too few.

        Where the oldest is due so soon that a batch with it must be small, engines are short: a batch that begins
        later, and leaves out who came before, may answer more in time. What counts is how many it answers, how many
        of the others can still be answered behind it, and the time it takes, in which more will come.
        """
        items = list(lane)
        first = self._from(items, now)
        if len(first) >= min(self.limits.size, len(items)):
            return first
        best, most = first, self._worth(first, items, now)
        for size in range(len(first) + 1, min(self.limits.size, len(items)) + 1):
            longest = max(item.tokens for item in items[:size])
            due = now + self.seconds(items[0].kind, longest, size)
            start = bisect_left(items, due, key=lambda item: item.deadline)
            if start == len(items):
                break
            batch = self._from(items[start:], now)
            worth = self._worth(batch, items[start:], now)
            if worth > most + 1e-6:
                best, most = batch, worth
        return best

    def _worth(self, batch: Sequence[Item], items: Sequence[Item], now: float) -> float:
        """How many items are answered by a batch and by the next one, less those that come meanwhile."""
        kind = batch[0].kind
        longest = max(item.tokens for item in batch)
        done = now + self.seconds(kind, longest, len(batch))
        others = [item for item in items if item not in batch]
        size = min(self.limits.size, len(others))
        due = done + self.seconds(kind, longest, max(size, 1))
        following = min(self.limits.size, sum(item.deadline >= due for item in others))
        took = done - now + (self.seconds(kind, longest, following) if following else 0.0)
        return len(batch) + following - self._busy_rate(kind, longest, now) * took

    def _busy_rate(self, kind: str, longest: int, now: float) -> float:
        """Items a second that an engine could answer instead: what comes, at most what full batches answer."""
        most = self.limits.size / self.seconds(kind, longest, self.limits.size)
        return min(most, self.forecasts[kind].rate(now)) if kind in self.forecasts else most

    def _from(self, items: Sequence[Item], now: float) -> list[Item]:
        """The oldest item and those that join it.

        An item joins if it is on time and costs no more so than alone: a long one would have all others padded.
        """
        batch = [items[0]]
        kind, longest = items[0].kind, items[0].tokens
        seconds = self.seconds(kind, longest, 1)
        due = items[0].deadline
        for item in items[1:]:
            if len(batch) == self.limits.size:
                break
            wider = max(longest, item.tokens)
            together = self.seconds(kind, wider, len(batch) + 1)
            if now + together <= due and together - seconds <= self.seconds(kind, item.tokens, 1):
                batch.append(item)
                longest, seconds = wider, together
        return batch

    def _held_until(self, batch: Sequence[Item], now: float, idle_since: float) -> float:
        """When to look at a batch again; `now` if it leaves."""
        hold = self.hold(batch, now, idle_since)
        if hold <= 0:
            return now
        return now + min(max(SHORTEST, hold / 4), self._longest_hold(batch, now, idle_since))

    def _longest_hold(self, batch: Sequence[Item], now: float, idle_since: float) -> float:
        """Seconds that a batch may be held, so that no item waits too long or is answered too late."""
        waited = now - max(idle_since, batch[0].arrived)
        longest = max(item.tokens for item in batch)
        after = self.seconds(batch[0].kind, longest, len(batch) + 1)
        return min(self.limits.delay - waited, batch[0].deadline - now - after)

    def hold(self, batch: Sequence[Item], now: float, idle_since: float) -> float:
        """Seconds for which a batch is best held for others, as things are expected now; 0 if it leaves.

        Args:
            batch: items of one kind, the oldest first.
            now: seconds of the items' clock.
            idle_since: when the engine became idle.
        """
        room = self.limits.size - len(batch)
        kind, count = batch[0].kind, len(batch)
        if kind not in self.forecasts or room <= 0:
            return 0.0
        longest = max(item.tokens for item in batch)
        alone = self.seconds(kind, longest, 1)
        before = self.seconds(kind, longest, count)
        after = self.seconds(kind, longest, count + 1)
        # One that joins spares a batch, and makes all that were there wait for the part it adds.
        spared = before + alone - after - count * (after - before)
        longest_hold = self._longest_hold(batch, now, idle_since)
        if spared <= 0 or longest_hold <= 0:
            return 0.0
        steps = np.arange(1, STEPS + 1) * (longest_hold / STEPS)
        joining = np.minimum(self.forecasts[kind].expected(now, steps), room)
        waits = np.cumsum(joining) * steps[0]  # of those that join, until all leave
        gains = joining * spared - len(self) * steps - waits
        best = int(gains.argmax())
        return float(steps[best]) if gains[best] > 0 else 0.0


def bisected(run: Callable[[Sequence[Any]], Sequence[Any]], items: Sequence[Any]) -> list[Any]:
    """Run a batch; if it fails, its halves, until only what makes it fail has failed.

    Args:
        run: N items -> N results.
        items: N of them.

    Returns:
        N results, an exception in the place of each item that fails alone.
    """
    try:
        results = list(run(items))
        if len(results) != len(items):
            raise RuntimeError(f"{len(items)} items gave {len(results)} results")
        return results
    except Exception as error:
        if len(items) == 1:
            return [error]
    middle = len(items) // 2
    return bisected(run, items[:middle]) + bisected(run, items[middle:])
