"""Inputs read by a thread pool while the model is at work, two batches at most at a time, and how far it has come."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)
THREADS = min(8, os.cpu_count() or 1)
LOGGED_EVERY = 10.0
"""Seconds between two lines where there is no terminal to draw a bar on."""
SHOWN_FROM = 8
"""Batches from which on a bar is drawn."""


def read_ahead(items: Sequence[Any], read: Callable[[Any], Any], size: int) -> Iterator[list[Future]]:
    """Read items in a thread pool, in their order.

    Args:
        items: N of them.
        read: of one item; decoders leave Python's lock.
        size: of a batch.

    Yields:
        the futures of each batch, all of them begun; while the caller uses one batch the next is read, so that no more
        than two are held.
    """
    pool = ThreadPoolExecutor(THREADS)
    try:
        begun: list[Future] = []
        for start in range(0, len(items), size):
            following = [pool.submit(read, item) for item in items[start : start + size]]
            if begun:
                yield begun
            begun = following
        if begun:
            yield begun
    finally:
        pool.shutdown(cancel_futures=True)


class Course:
    """How far a loop over items has come: a bar on a terminal, a log line now and then elsewhere, neither if short.

    Args:
        description: what is counted.
        total: items.
        size: of a batch.
    """

    def __init__(self, description: str, total: int, size: int) -> None:
        self.description = description
        self.total = total
        self.done = 0
        self.started = time.perf_counter()
        self.logged = self.started
        console = Console(stderr=True)
        self.hidden = total < SHOWN_FROM * size or not console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=self.hidden)
        self.task = self.bar.add_task(description, total=total)

    def __enter__(self) -> "Course":
        self.bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.bar.stop()

    def advance(self, count: int) -> None:
        """Count items that are done."""
        self.done += count
        self.bar.advance(self.task, count)
        now = time.perf_counter()
        if self.hidden and now - self.logged >= LOGGED_EVERY:
            self.logged = now
            rate = self.done / (now - self.started)
            logger.info("%s: %s of %s, %.0f a second", self.description, f"{self.done:,}", f"{self.total:,}", rate)
