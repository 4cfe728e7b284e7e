"""How far a long loop has come: one line on a terminal, a line now and then in a log, neither of a short one."""

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
LOGGED_EVERY = 10.0
"""Seconds between two lines where there is no terminal."""
DRAWN_EVERY = 0.5
"""Seconds between two looks at the note on a terminal."""
SHOWN_AFTER = 1.0
"""Seconds from which on a loop is long enough for a line on a terminal."""


def no_note() -> str:
    """What stands at the end of a line of which there is no more to say."""
    return ""


class Course:
    """A loop over items, and how far it has come.

    Args:
        description: what is done.
        total: items.
        done: items that an earlier process has done.
        note: what else there is to say; asked for only where a line is written, since it may wait for a device.
    """

    def __init__(self, description: str, total: int, done: int = 0, note: Callable[[], str] = no_note) -> None:
        self.description = description
        self.total = total
        self.before = done
        self.done = done
        self.note = note
        self.started = time.perf_counter()
        self.logged = self.started
        self.drawn = self.started
        console = terminal()
        self.drawing = console.is_terminal
        columns = (
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        self.bar = Progress(*columns, console=console, transient=True, disable=not self.drawing, expand=True)
        self.task = self.bar.add_task(description, total=total, completed=done, note="")

    def __enter__(self) -> "Course":
        return self

    def __exit__(self, *raised: object) -> None:
        self.bar.stop()

    def advance(self, count: int) -> None:
        """Count items that are done."""
        self.done += count
        now = time.perf_counter()
        if self.drawing:
            self.bar.advance(self.task, count)
            if now - self.drawn >= DRAWN_EVERY:
                self.drawn = now
                self.bar.update(self.task, note=self.note())
            if now - self.started >= SHOWN_AFTER:
                self.bar.start()
        elif now - self.logged >= LOGGED_EVERY:
            self.logged = now
            logger.info("%s", self.line(now))

    def line(self, now: float) -> str:
        """One line of a log: how many are done, how fast, and the time that is left.

        Args:
            now: `time.perf_counter()`.
        """
        rate = (self.done - self.before) / max(now - self.started, 1e-9)
        speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
        parts = [f"{self.description}: {self.done:,} of {self.total:,}", f"{speed} a second"]
        if rate > 0:
            parts.append(f"{clock((self.total - self.done) / rate)} left")
        note = self.note()
        return ", ".join([*parts, note] if note else parts)


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def followed(items: Iterable[Item], description: str, total: int, size: int = 1) -> Iterator[Item]:
    """Items one by one, while a line says how far their loop has come.

    Args:
        items: what the loop is over.
        description: what is done.
        total: how many items, or what they hold together.
        size: how many each of them counts.
    """
    with Course(description, total) as course:
        for item in items:
            yield item
            course.advance(min(size, total - course.done))


@functools.cache
def terminal() -> Console:
    """Where lines are drawn: one console, since it alone knows of a line within another's loop."""
    return Console(stderr=True)
