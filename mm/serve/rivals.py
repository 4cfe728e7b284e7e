"""Other servers' rules, restated: what they do when an engine is idle. One kind of requests, first in, first out.

Each refuses a request that has waited longer than its deadline, as each of those servers does when it is told to.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from mm.serve.batcher import Decision, Item

SOON = 1e-6
"""Seconds; added to the moment a rule waits for, so that rounding does not put it before that."""


class NoWait:
    """Triton's rule with no queue delay: an idle engine takes what waits.

    Args:
        size: of a batch at most.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.waiting: deque[Item] = deque()

    def add(self, item: Item) -> None:
        """Take in an item."""
        self.waiting.append(item)

    def done(self, batch: Sequence[Item], seconds: float) -> None:
        """Learn nothing."""

    def next(self, now: float, idle_since: float) -> Decision:
        """Take what waits."""
        expired = tuple(self._expired(now))
        if not self.waiting:
            return Decision(expired=expired)
        until = self.leaves(now, idle_since)
        if until > now:
            return Decision(expired=expired, again=until)
        batch = [self.waiting.popleft() for _ in range(min(self.size, len(self.waiting)))]
        return Decision(tuple(batch), expired)

    def leaves(self, now: float, idle_since: float) -> float:
        """When the batch leaves that waits, if nothing comes before."""
        return now

    def _expired(self, now: float) -> Iterator[Item]:
        while self.waiting and now > self.waiting[0].deadline:
            yield self.waiting.popleft()


class FixedWait(NoWait):
    """mosec's, Ray Serve's, and Triton's with a queue delay: full, or so long after the oldest came.

    Args:
        size: of a batch at most.
        wait: seconds.
    """

    def __init__(self, size: int, wait: float = 0.005) -> None:
        super().__init__(size)
        self.wait = wait

    def leaves(self, now: float, idle_since: float) -> float:
        """When the oldest has waited long enough."""
        due = self.waiting[0].arrived + self.wait
        return now if len(self.waiting) >= self.size or now >= due else due + SOON


class LitServeWindow(NoWait):
    """LitServe 0.2.19's loop: windows of one length follow each other while the engine is idle, whoever comes when.

    Args:
        size: of a batch at most.
        wait: seconds of a window.
    """

    def __init__(self, size: int, wait: float = 0.005) -> None:
        super().__init__(size)
        self.wait = wait

    def leaves(self, now: float, idle_since: float) -> float:
        """At the end of the window in which the oldest was taken in."""
        if len(self.waiting) >= self.size:
            return now
        begun = max(self.waiting[0].arrived, idle_since)
        windows = (begun - idle_since) // self.wait + 1
        due = idle_since + windows * self.wait
        return now if now >= due else due + SOON


class BentoCork(NoWait):
    """BentoML 1.4.40's CorkDispatcher, after its training: looked at in ticks of a millisecond.

    It holds n requests while n · (time since the last came + tick + a) is at most 0.95 of how long the oldest waited
    on average in its last batches, and refuses what would be late by its regression a · n + b.

    Args:
        size: of a batch at most.
        latency: its `max_latency`, seconds.
    """

    TICK = 0.001
    KEPT = 50
    REFRESH = 5.0

    def __init__(self, size: int, latency: float) -> None:
        super().__init__(size)
        self.latency = latency
        self.ran: deque[tuple[int, float, float]] = deque(maxlen=self.KEPT)
        self.slope = min(2.0, latency * 2 / 30)
        self.base = min(1.0, latency / 30)
        self.wait = 0.0
        self.refreshed = 0.0
        self.left = 0.0

    def next(self, now: float, idle_since: float) -> Decision:
        """Refuse what would be late, then hold or take."""
        refused = []
        while len(self.waiting) > 1:
            count = len(self.waiting)
            if now - self.waiting[0].arrived + self.slope * count + self.base < self.latency:
                break
            refused.append(self.waiting.popleft())
        if self.waiting and now - self.waiting[0].arrived >= self.latency:
            refused.append(self.waiting.popleft())
        decision = super().next(now, idle_since)
        if decision.batch:
            self.left = now
        return Decision(decision.batch, (*refused, *decision.expired), decision.again)

    def leaves(self, now: float, idle_since: float) -> float:
        """At the next tick, if those that wait are held."""
        count = len(self.waiting)
        since = now - self.waiting[-1].arrived
        held = count < self.size and count * (since + self.TICK + self.slope) <= 0.95 * self.wait
        return now + self.TICK if held else now

    def done(self, batch: Sequence[Item], seconds: float) -> None:
        """Regress durations on sizes, and average the waits of the oldest."""
        self.ran.append((len(batch), seconds, self.left - batch[0].arrived))
        if self.left - self.refreshed < self.REFRESH and len(self.ran) > 8:
            return
        self.refreshed = self.left
        rows = np.array(self.ran)
        columns = np.stack([rows[:, 0], np.ones(len(rows))], 1)
        slope, base = np.linalg.lstsq(columns, rows[:, 1], rcond=None)[0]
        self.slope = max(1e-6, float(slope))
        self.base = max(0.0, float(base))
        self.wait = max(0.0, float(rows[:, 2].mean()))
