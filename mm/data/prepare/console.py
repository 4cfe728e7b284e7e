"""What a preparing script shows: a bar while it works, a list of what it skipped, and how it can be stopped."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LISTED = 10
"""How many lines of a list are shown."""
console = Console(soft_wrap=True, highlight=False)


@contextmanager
def count_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over `total` things. Gives a function to call with how many more of them are dealt with."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def download_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over a file's bytes. Gives a function to call with how many are there and how many there are in all."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None)
        yield lambda there, total: progress.update(task, completed=there, total=total)


def print_list(title: str, lines: Sequence[str]) -> None:
    """Print a title and the first lines of a list below it; nothing for an empty list."""
    if not lines:
        return
    shown = [title, *lines[:LISTED]]
    if len(lines) > LISTED:
        shown.append(f"… and {len(lines) - LISTED} more")
    console.print("\n  ".join(shown), markup=False)


@contextmanager
def resumable(script: str) -> Iterator[None]:
    """Ctrl-C ends the process with exit code 130 and one line that says that the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"{script}: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
