"""What the pages say of serving."""

from pathlib import Path
from typing import Any

import pytest

from eval.claims import Evidence, batching
from eval.serving import (
    SOAK_COLUMNS,
    batching_columns,
    batching_rows,
    draw_batching,
    said_of,
    serving_rows,
    soak_rows,
    targets,
    worst_delay,
)


def rule(goodput: float, delay: float = 0.0, less: float = 0.0) -> dict[str, Any]:
    return {
        "goodput": [goodput, 0.1],
        "delay_p99_worst": delay,
        "latency_mean": [7.0, 0.1],
        "busy": [80.0, 0.1],
        "ours_less": [less, 0.1],
        "of_oracle": [100 * goodput / 90, 0.1],
    }


@pytest.fixture
def result() -> dict[str, Any]:
    def at(delay: float, less: float) -> dict[str, Any]:
        rules = {"this server": rule(88, delay), "forecast off": rule(87, 0, 1.0), "no wait": rule(80, 0, less)}
        return {"oracle": {"goodput": [90.0, 0.0]}, **rules}

    traces = {"poisson": {"0.1": at(4.0, 8), "0.9": at(6.5, 8)}, "adversarial": {"0.1": at(1.0, -3), "0.9": at(1.0, 8)}}
    return {"seeds": 20, "traces": traces}


def test_a_row_for_each_trace_and_rule(result: dict[str, Any]) -> None:
    rows = batching_rows(result)
    assert rows[0] == ["poisson", "oracle", "90.0", "90.0", "", "", ""]
    assert rows[1] == ["poisson", "this server", "88.0", "88.0", "6.5", "7.0", "80"]
    assert len(rows) == 8 and all(len(row) == len(batching_columns(result)) for row in rows)


def test_what_was_asked_is_said_to_hold_or_not(result: dict[str, Any]) -> None:
    delay, goodput, oracle, forecast = targets(result)
    assert "6.5 ms (asked: 15)" in delay and "at most 1 point behind" in goodput
    assert "poisson 97.8 %" in oracle and "2 of 2" in oracle and "+1.00 to +1.00 points" in forecast
    result["traces"]["poisson"]["0.9"]["no wait"]["ours_less"] = [-2.5, 0.1]
    assert "more than 1 point behind no wait on poisson at 0.9 by 2.5" in targets(result)[1]


def test_the_claim_says_the_delay_and_where(result: dict[str, Any]) -> None:
    row = {"server": "this server", "model": "nothing", "clients": 16, "requests_a_second": 1600.0, "p99": 15.0}
    row |= {"p50": 9.0, "p95": 12.0, "other_statuses": {"429": 2}, "wrong": 1, "lost": 0, "twice": 0}
    measured = batching(Evidence([], benchmarks={"batching": result, "serving": {"rows": [row]}})).measured
    assert "at most 6.5 ms" in measured and "from 10 to 90 %" in measured and "1,600 requests/s" in measured
    assert worst_delay(result) == 6.5
    assert batching(Evidence([])).measured == "not measured here"
    assert serving_rows({"rows": [row]}) == [["this server", "nothing", "16", "1,600", "9.0", "12.0", "15.0", "3", ""]]


def test_minutes_of_load_say_what_was_lost_and_what_was_answered_twice() -> None:
    row = {"model": "run: captions", "clients": 128, "seconds": 300.0, "requests_a_second": 30.0, "answered": 9000}
    row |= {"p50": 4000.0, "p95": 4500.0, "p99": 5000.0, "other_statuses": {"503": 1}, "wrong": 2, "lost": 4}
    row |= {"twice": 8, "counted": 9016, "memory_start": 900.0, "memory_end": 901.0, "memory_a_minute": 0.25}
    (cells,) = soak_rows({"rows": [row]})
    assert said_of({"cores": 1, "commit": "abc"}) == "Server, engine and clients on one core, commit abc."
    assert len(cells) == len(SOAK_COLUMNS) and cells[4:11] == ["30", "4000", "4500", "5000", "1", "6", "24"]


def test_the_picture_is_the_same_bytes_of_the_same_figures(result: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        draw_batching(result, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"poisson" in (tmp_path / "a.svg").read_bytes()
