"""One engine, one rule, one trace: who waits how long, and who is answered in time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mm.serve.batcher import Item, Rule
from mm.serve.traces import Trace


@dataclass(frozen=True)
class Cost:
    """What batches cost in a simulation: token · tokens with padding + item · items + batch, in seconds."""

    token: float = 1e-5
    item: float = 1.5e-4
    batch: float = 4e-3

    def seconds(self, longest: int, items: int) -> float:
        """Of a batch of items that are all padded to the longest."""
        return self.token * longest * items + self.item * items + self.batch


@dataclass(frozen=True)
class Outcome:
    """What became of N requests.

    Args:
        latencies: (N,) seconds from arrival to answer; infinite of those that were refused.
        delays: (N,) seconds that each waited while the engine was idle; of those that were refused, until then.
        batches: (M,) items of each batch.
        busy: seconds that the engine worked.
        seconds: from the first arrival to the last event.
    """

    latencies: np.ndarray
    delays: np.ndarray
    batches: np.ndarray
    busy: float
    seconds: float

    def goodput(self, deadline: float) -> float:
        """Share of the requests that were answered within a deadline."""
        return float((self.latencies <= deadline + 1e-9).mean())


def simulate(rule: Rule, trace: Trace, cost: Cost, deadline: float) -> Outcome:
    """Serve a trace.

    Args:
        rule: decides on batches; it sees no arrival before it is there.
        trace: N requests.
        cost: of batches, which the rule does not see either, but for what each took.
        deadline: seconds after its arrival at which a request's answer is due.
    """
    run = _Run(rule, trace, cost, deadline)
    run.serve()
    return run.outcome()


class _Run:
    def __init__(self, rule: Rule, trace: Trace, cost: Cost, deadline: float) -> None:
        self.rule = rule
        self.cost = cost
        self.items = []
        for number, (time, tokens) in enumerate(zip(trace.times.tolist(), trace.tokens.tolist(), strict=True)):
            self.items.append(Item("text", tokens, time, time + deadline, number))
        self.latencies = np.full(len(self.items), np.inf)
        self.delays = np.zeros(len(self.items))
        self.batches: list[int] = []
        self.busy = 0.0
        self.now = 0.0
        self.came = 0

    def serve(self) -> None:
        """Step from event to event until nobody comes and nobody waits."""
        idle_since = 0.0
        while True:
            self._arrive()
            decision = self.rule.next(self.now, idle_since)
            self._delayed([*decision.batch, *decision.expired], idle_since)
            if decision.batch:
                self._work(decision.batch)
                idle_since = self.now
                continue
            following = self.items[self.came].arrived if self.came < len(self.items) else math.inf
            event = min(following, math.inf if decision.again is None else decision.again)
            if math.isinf(event):
                return
            assert event > self.now, "a rule that waits for what has been never ends"
            self.now = event

    def outcome(self) -> Outcome:
        """What became of all."""
        return Outcome(self.latencies, self.delays, np.array(self.batches), self.busy, self.now)

    def _arrive(self) -> None:
        while self.came < len(self.items) and self.items[self.came].arrived <= self.now:
            self.rule.add(self.items[self.came])
            self.came += 1

    def _work(self, batch: Sequence[Item]) -> None:
        seconds = self.cost.seconds(max(item.tokens for item in batch), len(batch))
        self.now += seconds
        self.busy += seconds
        self.batches.append(len(batch))
        for item in batch:
            self.latencies[item.payload] = self.now - item.arrived
        self._arrive()  # who came meanwhile came before the answer
        self.rule.done(batch, seconds)

    def _delayed(self, items: Sequence[Item], idle_since: float) -> None:
        for item in items:
            self.delays[item.payload] = self.now - max(item.arrived, idle_since)
