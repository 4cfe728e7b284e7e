"""Arrivals to come, from those that came."""

import numpy as np
import pytest

from mm.serve.forecast import Forecast, Pace, period_of

STEPS = np.arange(1, 11) * 1e-3


def fed(times: np.ndarray) -> Forecast:
    forecast = Forecast()
    for time in times.tolist():
        forecast.arrived(time)
    return forecast


def test_nothing_is_expected_of_what_never_came_twice() -> None:
    assert not Forecast().expected(1.0, STEPS).any()
    assert not fed(np.array([0.5])).expected(1.0, STEPS).any()


def test_steady_arrivals_go_on() -> None:
    times = np.sort(np.random.default_rng(0).uniform(0, 4, 4000))
    expected = fed(times).expected(float(times[-1]), STEPS)
    assert expected[-1] == pytest.approx(10, rel=0.4) and (np.diff(expected) > 0).all()


def test_a_burst_is_known_by_its_first_gaps_and_its_end_by_the_silence() -> None:
    pace = Pace()
    times = [1.0 * burst + 0.001 * i for burst in range(20) for i in range(10)]
    for time in times:
        pace.arrived(time)
    after = pace.rate(times[-1])
    assert after > 300
    assert pace.rate(times[-1] + 0.05) < after / 20
    pace.arrived(20.0)
    pace.arrived(20.001)
    assert pace.rate(20.001) > 300


def test_the_clock_s_next_stroke_is_foreseen() -> None:
    random = np.random.default_rng(1)
    strokes = np.concatenate([0.05 * n + random.uniform(0, 0.002, 8) for n in range(80)])
    times = np.sort(np.concatenate([strokes, random.uniform(0, 4, 400)]))
    found = period_of(times[-512:] - times[-512])
    assert found > 0 and found / 0.05 == pytest.approx(round(found / 0.05), abs=0.005)
    forecast = fed(times)
    before, at = (forecast.expected(4 + since, np.array([0.002]))[0] for since in (0.020, 0.049))
    assert at > 3 * before


def test_arrivals_without_a_pattern_have_no_period() -> None:
    found = [period_of(np.sort(np.random.default_rng(seed).uniform(0, 1, 512))) for seed in range(20)]
    assert sum(each > 0 for each in found) <= 1
