"""How many requests will come in the next milliseconds, from those that came.

Two terms: a burst term, which is also the short-window rate, and a period term.
"""

import math
from collections import deque

import numpy as np

SWITCH = 0.05
"""Probability that the pace changes from one arrival to the next."""
MEMORY = 0.98
"""What is left of a gap's weight when the next one is known."""
KEPT = 512
"""Arrivals that a period is looked for in."""
LOOK_EVERY = 128
"""Arrivals between two looks."""
PHASES = 32
"""Parts of a period."""
DOUBT = 4.0
"""Arrivals that each part of a period is thought to have had beside those it had."""
SIGNIFICANT = 8.0
"""Standard deviations by which a period must stand out of the autocorrelation of counts."""


class Pace:
    """Arrivals that come at one of two paces, a burst and a lull (a Markov-modulated Poisson process, filtered).

    The rates are learned online, each from the gaps that are probably of its pace; which pace it is now follows from
    the last gaps and from the time since the last arrival.
    """

    def __init__(self) -> None:
        self.last = -math.inf
        self.fast = (0.0, 0.0)  # gaps, and seconds of them
        self.slow = (0.0, 0.0)
        self.burst = 0.5  # probability right after the last arrival

    @property
    def known(self) -> bool:
        """Whether there was a gap to learn from."""
        return self.slow[1] > 0

    def arrived(self, time: float) -> None:
        """Take an arrival into account."""
        gap = max(time - self.last, 1e-6)
        first = math.isinf(self.last)
        self.last = max(time, self.last)
        if first:
            return
        if not self.known:
            self.fast = (1.0, gap / 2)
            self.slow = (1.0, gap * 2)
            return
        fast, slow = self._rates()
        likely = self.burst * fast * math.exp(-fast * gap)
        other = (1 - self.burst) * slow * math.exp(-slow * gap)
        share = likely / (likely + other) if likely + other > 0 else 0.0
        self.fast = _weighted(self.fast, gap, share)
        self.slow = _weighted(self.slow, gap, 1 - share)
        self.burst = share * (1 - SWITCH) + (1 - share) * SWITCH

    def rate(self, now: float) -> float:
        """Arrivals a second that are to be expected from now on."""
        if not self.known:
            return 0.0
        fast, slow = self._rates()
        elapsed = max(now - self.last, 0.0)
        likely = self.burst * math.exp(-fast * elapsed)
        other = (1 - self.burst) * math.exp(-slow * elapsed)
        share = likely / (likely + other) if likely + other > 0 else 0.0
        return share * fast + (1 - share) * slow

    def _rates(self) -> tuple[float, float]:
        fast = self.fast[0] / self.fast[1]
        slow = self.slow[0] / self.slow[1]
        return max(fast, slow), min(fast, slow)


def _weighted(counted: tuple[float, float], gap: float, weight: float) -> tuple[float, float]:
    """Gaps and seconds of them, with one more that has a weight."""
    gaps, seconds = counted
    kept = 1 - (1 - MEMORY) * weight
    return gaps * kept + weight, seconds * kept + weight * gap


class Period:
    """Arrivals that come by a clock, such as those of clients that wake up together.

    A period is a peak in the autocorrelation of counts. Phases of it that had more arrivals will have more.
    """

    def __init__(self) -> None:
        self.times: deque[float] = deque(maxlen=KEPT)
        self.seen = 0
        self.seconds = 0.0
        self.profile = np.ones(PHASES)

    def arrived(self, time: float) -> None:
        """Take an arrival into account."""
        self.times.append(time)
        self.seen += 1
        if self.seen % LOOK_EVERY == 0 and len(self.times) >= LOOK_EVERY:
            self._look()

    def factors(self, now: float, steps: np.ndarray) -> np.ndarray:
        """How much more comes at each of some times (T,) after now than comes now."""
        if not self.seconds:
            return np.ones(len(steps))
        return self._profile(now + steps) / self._profile(now)

    def _profile(self, times: np.ndarray | float) -> np.ndarray:
        phases = (np.asarray(times) / self.seconds) % 1.0
        return self.profile[(phases * PHASES).astype(int) % PHASES]

    def _look(self) -> None:
        times = np.array(self.times)
        self.seconds = period_of(times - times[0])
        if self.seconds:
            found = _folded(times, np.array([self.seconds]))[0]
            # As if each part had seen a few more arrivals: few are no reason to expect none, or many.
            self.profile = (found + DOUBT) / (found.mean() + DOUBT)


def period_of(times: np.ndarray) -> float:
    """The seconds after which a pattern of arrivals repeats; 0 if none stands out.

    Args:
        times: (N,) in order, from 0.
    """
    width = max(times[-1] / 4096, 5e-4)
    counts = np.bincount((times / width).astype(int)).astype(float)
    counts -= counts.mean()
    power = np.abs(np.fft.rfft(counts, 2 * len(counts))) ** 2
    correlation = np.fft.irfft(power)[: len(counts) // 3]  # three periods at least
    nearest = PHASES // 2  # what is nearer is the length of a burst
    if len(correlation) <= nearest or correlation[0] <= 0:
        return 0.0
    far = correlation[nearest:] / correlation[0]
    best = int(far.argmax())
    spread = float(np.median(np.abs(far)) / 0.6745)
    if far[best] <= max(SIGNIFICANT * spread, 0.1):
        return 0.0
    # Counts tell the period to their width; over all arrivals the one that folds them best is known much better.
    near = (nearest + best + np.linspace(-1, 1, 81)) * width
    found = _folded(times, near)
    return float(near[(found**2).sum(1).argmax()])


def _folded(times: np.ndarray, periods: np.ndarray) -> np.ndarray:
    """(P, PHASES), how many arrivals fell into each part of each of P periods."""
    parts = (times / periods[:, None] % 1.0 * PHASES).astype(int) % PHASES
    rows = np.arange(len(periods))[:, None] * PHASES
    return np.bincount((parts + rows).ravel(), minlength=len(periods) * PHASES).reshape(-1, PHASES)


class Forecast:
    """What comes, of one kind of requests."""

    def __init__(self) -> None:
        self.pace = Pace()
        self.period = Period()

    def arrived(self, time: float) -> None:
        """Take an arrival into account; times are in order, in seconds of any clock."""
        self.pace.arrived(time)
        self.period.arrived(time)

    def rate(self, now: float) -> float:
        """Arrivals a second that are to be expected."""
        return self.pace.rate(now)

    def expected(self, now: float, steps: np.ndarray) -> np.ndarray:
        """How many arrivals are to be expected until each of some times.

        Args:
            now: seconds of the clock.
            steps: (T,) seconds after it, evenly spaced.

        Returns:
            (T,) numbers of arrivals, growing.
        """
        rate = self.pace.rate(now)
        return np.cumsum(rate * self.period.factors(now, steps) * (steps[0] if len(steps) else 0.0))
