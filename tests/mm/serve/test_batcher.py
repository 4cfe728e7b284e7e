"""Who leaves together, and when: no clock, so every case is a line of arithmetic."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mm.serve.batcher import Batcher, Decision, Item, Limits, bisected
from mm.serve.cost import CostModel


class Coming:
    """A forecast that says how many come in a second, evenly."""

    def __init__(self, rate: float) -> None:
        self.per_second = rate

    def arrived(self, time: float) -> None:
        pass

    def rate(self, now: float) -> float:
        return self.per_second

    def expected(self, now: float, steps: np.ndarray) -> np.ndarray:
        return self.per_second * steps


def batcher(rate: float | None = None, size: int = 4, delay: float = 0.010) -> Batcher:
    """A batch costs 4 ms, 0.1 ms an item, 10 µs a token."""
    forecast = None if rate is None else lambda: Coming(rate)
    return Batcher(Limits(size, delay), lambda kind: CostModel(1e-5, 1e-4, 4e-3), forecast)


def given(batcher: Batcher, count: int, **changes: Any) -> list[Item]:
    items = [Item(**{"kind": "text", "tokens": 10, "arrived": 0.0, **changes}) for _ in range(count)]
    for item in items:
        batcher.add(item)
    return items


def test_nothing_waits_and_nothing_leaves() -> None:
    assert batcher().next(0.0, 0.0) == Decision()


def test_without_a_forecast_an_idle_engine_takes_what_waits_first_in_first_out() -> None:
    rule = batcher(size=4)
    items = given(rule, 6)
    assert rule.next(0.0, 0.0).batch == tuple(items[:4])
    assert rule.next(0.0, 0.0).batch == tuple(items[4:])
    assert len(rule) == 0


def test_a_full_batch_leaves_whatever_comes() -> None:
    assert len(batcher_with(4, rate=10_000.0).next(0.0, 0.0).batch) == 4


def batcher_with(count: int, **options: Any) -> Batcher:
    rule = batcher(**options)
    given(rule, count)
    return rule


@pytest.mark.parametrize("rate, waits", [(100.0, False), (200.0, False), (400.0, True), (2000.0, True)])
def test_it_waits_where_one_more_gains_more_than_waiting_costs(rate: float, waits: bool) -> None:
    """One that joins spares 4 ms of a batch: worth it if it comes sooner than that, for the one that waits."""
    decision = batcher_with(1, rate=rate).next(0.0, 0.0)
    assert bool(decision.batch) is not waits
    assert (decision.again is not None and 0 < decision.again <= 0.010) is waits


def test_the_more_wait_the_sooner_it_leaves() -> None:
    waiting = [not batcher_with(count, rate=700.0).next(0.0, 0.0).batch for count in (1, 2, 3)]
    assert waiting == [True, True, False]


def test_nobody_waits_longer_than_the_limit_while_an_engine_is_idle() -> None:
    rule = batcher_with(1, rate=2000.0)
    now = 0.0
    while not (decision := rule.next(now, 0.0)).batch:
        assert decision.again is not None
        now = decision.again
    assert now == pytest.approx(0.010, abs=3e-4)
    assert batcher_with(1, rate=100.0).next(0.05, 0.0).batch  # asked too late


def test_time_in_which_no_engine_was_idle_is_no_delay() -> None:
    """It came long ago, the engine is idle just now: it may still wait for another."""
    assert not batcher_with(1, rate=2000.0).next(1.0, 1.0).batch


def test_a_deadline_is_not_missed_for_another_one() -> None:
    rule = batcher(rate=2000.0)
    given(rule, 1, deadline=0.006)
    decision = rule.next(0.0, 0.0)
    assert decision.again is not None and decision.again <= 0.006 - 0.0042
    assert rule.next(0.0018, 0.0).batch


def test_what_would_be_late_is_refused_not_computed() -> None:
    rule = batcher()
    (late,) = given(rule, 1, deadline=0.004)
    (due,) = given(rule, 1, deadline=1.0)
    assert rule.next(0.0, 0.0) == Decision((due,), (late,))


def test_where_engines_are_short_those_who_can_be_answered_together_are() -> None:
    """The first is due so soon that it could only be computed alone, and eight others would be late for it."""
    rule = batcher(size=8)
    (first,) = given(rule, 1, deadline=0.0043)
    others = given(rule, 8, deadline=0.0085)
    assert rule.next(0.0, 0.0) == Decision(tuple(others), (first,))


def test_a_long_item_does_not_make_short_ones_wait_for_its_padding() -> None:
    rule = batcher()
    short = given(rule, 2, tokens=10)
    long = given(rule, 1, tokens=1000)
    late = given(rule, 1, tokens=12)
    assert rule.next(0.0, 0.0).batch == (*short, *late)
    assert rule.next(0.0, 0.0).batch == tuple(long)


def test_kinds_never_mix_and_the_most_urgent_leaves_first() -> None:
    rule = batcher()
    images = given(rule, 2, kind="image", deadline=2.0)
    texts = given(rule, 1, kind="text", deadline=1.0)
    assert rule.next(0.0, 0.0).batch == tuple(texts)
    assert rule.next(0.0, 0.0).batch == tuple(images)


def test_what_comes_back_takes_its_old_place() -> None:
    rule = batcher(size=1)
    first, second = given(rule, 1, deadline=1.0), given(rule, 1, deadline=2.0)
    assert rule.next(0.0, 0.0).batch == tuple(first)
    rule.add(first[0])
    assert [rule.next(0.0, 0.0).batch for _ in range(2)] == [tuple(first), tuple(second)]


def test_what_is_withdrawn_is_gone() -> None:
    rule = batcher()
    kept, gone = given(rule, 2)
    assert rule.remove(gone) and not rule.remove(gone)
    assert rule.next(0.0, 0.0).batch == (kept,)


def test_a_bad_item_fails_alone() -> None:
    ran: list[list[int]] = []

    def run(items: Sequence[int]) -> list[int]:
        ran.append(list(items))
        if 5 in items:
            raise RuntimeError("five")
        return [10 * item for item in items]

    results = bisected(run, range(8))
    assert [str(each) for each in results] == ["0", "10", "20", "30", "40", "five", "60", "70"]
    assert isinstance(results[5], RuntimeError) and len(ran) == 7


def test_results_that_are_too_few_are_nobody_s() -> None:
    results = bisected(lambda items: [0] * (len(items) - 1), range(4))
    assert len(results) == 4 and all(isinstance(each, RuntimeError) for each in results)
