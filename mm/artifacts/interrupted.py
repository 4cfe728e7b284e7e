"""The end of a process by a signal, as an exception that unwinds it: locks are released, files are closed."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """A signal ended the work. No `except Exception` on the way takes it for a broken file.

    Args:
        number: of the signal.
        where: how far the work was, in words.
        resumable: whether `--resume true` goes on from there.
    """

    def __init__(self, number: int, where: str = "", resumable: bool = False) -> None:
        self.number = number
        self.where = where
        self.resumable = resumable
        super().__init__(signal.Signals(number).name, where)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Within it SIGTERM raises `Interrupted`, as Ctrl-C raises KeyboardInterrupt."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
