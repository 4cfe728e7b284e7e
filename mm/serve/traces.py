"""When requests come, and how long they are: generated, or recorded."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from kernels.errors import UserError

LENGTHS = (4, 25)
"""Tokens of a generated request: from the first, below the second."""


@dataclass(frozen=True)
class Trace:
    """N requests in order of arrival.

    Args:
        times: (N,) seconds.
        tokens: (N,) int.
    """

    times: np.ndarray
    tokens: np.ndarray

    def at_rate(self, rate: float) -> "Trace":
        """The same requests, stretched in time to a mean rate per second."""
        own = len(self.times) / (self.times[-1] - self.times[0])
        return Trace((self.times - self.times[0]) * (own / rate), self.tokens)

    @classmethod
    def load(cls, path: Path) -> "Trace":
        """Read a recorded trace: CSV with the columns TIMESTAMP and ContextTokens, as Azure's of 2023 has them.

        Args:
            path: of the file; a timestamp is an ISO date and time, or seconds.

        Raises:
            ValueError: a column is absent, a value is none of these, or there are fewer than two requests.
        """
        try:
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            times = np.array([_seconds(row["TIMESTAMP"]) for row in rows])
            tokens = np.array([int(row["ContextTokens"]) for row in rows])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no trace: it needs columns TIMESTAMP and ContextTokens ({error})") from error
        if len(times) < 2 or times.max() == times.min() or tokens.min() < 1:
            raise UserError(f"{path} is no trace: it needs two requests at different times, of a token or more")
        order = np.argsort(times, kind="stable")
        return cls(times[order] - times.min(), tokens[order])


def _seconds(stamp: str) -> float:
    try:
        return float(stamp)
    except ValueError:
        return datetime.fromisoformat(stamp[:26]).timestamp()


def poisson(rate: float, seconds: float, random: np.random.Generator) -> Trace:
    """Arrivals that know nothing of each other."""
    return _with_lengths(_poisson_at(lambda times: np.full(len(times), rate), rate, seconds, random), random)


def bursty(rate: float, seconds: float, random: np.random.Generator) -> Trace:
    """Markov-modulated: bursts of 40 ms on average at four times the mean rate, in a fifth of the time."""
    edges = [0.0]
    while edges[-1] < seconds:
        edges.append(edges[-1] + random.exponential(0.04 if len(edges) % 2 else 0.16))
    ends = np.array(edges[1:])

    def at(times: np.ndarray) -> np.ndarray:
        return np.where(np.searchsorted(ends, times, side="right") % 2 == 0, 4 * rate, rate / 4)

    return _with_lengths(_poisson_at(at, 4 * rate, seconds, random), random)


def daily(rate: float, seconds: float, random: np.random.Generator) -> Trace:
    """A day in the trace's seconds: the rate swings by 60 %, and a fifth of the requests come by the clock.

    The clock strikes every 50 ms; its requests come within 2 ms.
    """

    def at(times: np.ndarray) -> np.ndarray:
        swing = 1 - 0.6 * np.cos(2 * np.pi * times / seconds)
        struck = (times % 0.05) < 0.002
        return rate * swing * np.where(struck, 0.8 + 0.2 * 0.05 / 0.002, 0.8)

    return _with_lengths(_poisson_at(at, rate * 1.6 * 5.8, seconds, random), random)


def adversarial(rate: float, seconds: float, random: np.random.Generator) -> Trace:
    """Trains of arrivals that seem to go on and break off, the next beginning when a batch that waited has just left.

    Trains have 2 to 6 requests, 0.5 ms apart; between two lies what makes the mean rate.
    """
    times: list[float] = []
    now = 0.0
    while now < seconds:
        count = int(random.integers(2, 7))
        times.extend(now + 0.0005 * np.arange(count))
        now = times[-1] + max(0.0005, count / rate - 0.0005 * (count - 1))
    return _with_lengths(np.array(times), random)


GENERATED: dict[str, Callable[[float, float, np.random.Generator], Trace]] = {
    "poisson": poisson,
    "bursty": bursty,
    "daily": daily,
    "adversarial": adversarial,
}
"""By name; each takes the mean rate per second, the seconds, and what draws."""


def _poisson_at(
    at: Callable[[np.ndarray], np.ndarray], most: float, seconds: float, random: np.random.Generator
) -> np.ndarray:
    """Arrivals of a rate that changes, by thinning those of its highest."""
    times = np.sort(random.uniform(0, seconds, random.poisson(most * seconds)))
    return times[random.uniform(0, most, len(times)) < at(times)]


def _with_lengths(times: np.ndarray, random: np.random.Generator) -> Trace:
    return Trace(times, random.integers(*LENGTHS, len(times)))
