"""Counters and histograms in Prometheus' text format (version 0.0.4)."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass
class Histogram:
    """How often a quantity was at most each of some bounds.

    Args:
        bounds: ascending.
    """

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str) -> Iterator[str]:
        """As Prometheus reads it."""
        below = 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            below += count
            yield f'{name}_bucket{{le="{bound}"}} {below}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {below}"


class Metrics:
    """What a server counts."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.items: Counter[tuple[str, str]] = Counter()
        self.latency = Histogram(SECONDS)
        self.delay = Histogram(SECONDS)
        self.batch = Histogram(ITEMS)

    def text(self, now: Mapping[str, float]) -> str:
        """Everything, with what is true now, by name."""
        return "\n".join(self._lines(now)) + "\n"

    def _lines(self, now: Mapping[str, float]) -> Iterator[str]:
        yield from _head("mm_requests_total", "counter", "Requests by path and status.")
        for (path, status), count in sorted(self.requests.items()):
            yield f'mm_requests_total{{path="{path}",status="{status}"}} {count}'
        yield from _head("mm_items_total", "counter", "Inputs by kind and what became of them.")
        for (kind, outcome), count in sorted(self.items.items()):
            yield f'mm_items_total{{kind="{kind}",outcome="{outcome}"}} {count}'
        histograms = {
            "mm_item_seconds": (self.latency, "From an input's arrival to its result."),
            "mm_added_delay_seconds": (self.delay, "Waited while an engine was idle."),
            "mm_batch_items": (self.batch, "Inputs of a batch."),
        }
        for name, (histogram, about) in histograms.items():
            yield from _head(name, "histogram", about)
            yield from histogram.lines(name)
        for name, value in now.items():
            yield from _head(name, "gauge", "Now.")
            yield f"{name} {value:g}"


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"
