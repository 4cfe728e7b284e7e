"""Rules on arrivals that can be followed by eye, and the oracle beside every way there is."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from mm.serve.batcher import Batcher, Limits, Rule
from mm.serve.cost import CostModel
from mm.serve.oracle import most_in_time
from mm.serve.rivals import BentoCork, FixedWait, LitServeWindow, NoWait
from mm.serve.simulate import Cost, simulate
from mm.serve.traces import GENERATED, Trace

COST = Cost(token=0.0, item=0.0, batch=0.004)


def trace(*milliseconds: float) -> Trace:
    return Trace(np.array(milliseconds) / 1000, np.full(len(milliseconds), 10))


@pytest.mark.parametrize(
    "rule, latencies, delays",
    [
        (NoWait(4), [4, 7, 6], [0, 0, 0]),
        (FixedWait(4), [9, 8, 7], [5, 4, 3]),
        (FixedWait(2), [5, 4, 9], [1, 0, 2]),
        (LitServeWindow(4), [9, 8, 7], [5, 4, 3]),
    ],
)
def test_each_rule_does_what_its_server_does(rule: Rule, latencies: list[float], delays: list[float]) -> None:
    outcome = simulate(rule, trace(0, 1, 2), COST, 1.0)
    assert (1000 * outcome.latencies).round(2) == pytest.approx(latencies, abs=0.02)
    assert (1000 * outcome.delays).round(2) == pytest.approx(delays, abs=0.02)


def test_litserve_s_window_is_not_the_request_s() -> None:
    """It came at 7 ms, in the window from 5 to 10 ms."""
    assert simulate(LitServeWindow(4), trace(7), COST, 1.0).delays[0] == pytest.approx(0.003, abs=1e-5)


def test_bentoml_s_dispatcher_learns_to_wait_and_refuses_what_would_be_late() -> None:
    times = np.arange(400) * 1.0
    learned = simulate(BentoCork(16, 0.012), trace(*times.tolist()), COST, 0.012)
    assert np.isfinite(learned.latencies[20:]).all() and learned.batches.mean() > 3
    crowd = simulate(BentoCork(2, 0.012), trace(*(times / 10).tolist()), COST, 0.012)
    assert 0.03 < crowd.goodput(0.012) < 0.1 and np.isinf(crowd.latencies).any()


def every_way(given: Trace, deadline: float, size: int) -> int:
    """The most in time, by trying every set of first-in-first-out batches of every choice of requests."""
    best = 0
    for kept in itertools.product((False, True), repeat=len(given.times)):
        times = given.times[list(kept)]
        for cuts in itertools.product((False, True), repeat=max(len(times) - 1, 0)):
            groups = np.split(times, [place + 1 for place, cut in enumerate(cuts) if cut])
            free, answered = 0.0, 0
            for group in groups:
                if not 0 < len(group) <= size:
                    continue
                free = max(free, group[-1]) + COST.seconds(10, len(group))
                answered += int((free <= group + deadline + 1e-12).sum())
            best = max(best, answered)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_the_oracle_is_the_best_of_every_way(seed: int) -> None:
    random = np.random.default_rng(seed)
    given = trace(*np.sort(random.uniform(0, 12, 7)).tolist())
    assert most_in_time(given, COST, 0.0055, 2) == every_way(given, 0.0055, 2)


@pytest.mark.parametrize("name", GENERATED)
def test_no_rule_beats_the_oracle_and_ours_comes_near(name: str) -> None:
    cost = Cost()
    deadline = 3 * cost.seconds(24, 16)
    given = GENERATED[name](1000.0, 0.6, np.random.default_rng(3))
    best = most_in_time(given, cost, deadline, 16)
    ours = Batcher(Limits(16), lambda kind: CostModel(2e-5, 2e-4, 2e-3))
    rules: list[Rule] = [ours, NoWait(16), FixedWait(16), LitServeWindow(16), BentoCork(16, deadline)]
    answered = [round(simulate(rule, given, cost, deadline).goodput(deadline) * len(given.times)) for rule in rules]
    assert max(answered) <= best and answered[0] > 0.9 * best


@pytest.mark.parametrize("name", GENERATED)
def test_a_trace_has_the_rate_that_is_asked_for(name: str) -> None:
    given = [GENERATED[name](800.0, 4.0, np.random.default_rng(seed)) for seed in range(4)]
    assert np.mean([len(each.times) / 4.0 for each in given]) == pytest.approx(800, rel=0.15)
    assert all((np.diff(each.times) >= 0).all() and each.tokens.min() >= 4 for each in given)


def test_a_recorded_trace_is_read_in_order_and_stretched(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:47.0000000,20,3\n2023-11-16 18:15:46.5000000,10,9\n"
    )
    found = Trace.load(path)
    assert found.times.tolist() == [0.0, 0.5] and found.tokens.tolist() == [10, 20]
    assert found.at_rate(20.0).times.tolist() == pytest.approx([0.0, 0.1])
    path.write_text("when,tokens\n1,2\n")
    with pytest.raises(ValueError, match=r"azure\.csv is no trace: it needs columns TIMESTAMP"):
        Trace.load(path)
