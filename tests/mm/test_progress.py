"""Long loops say how far they are, in one line that fits."""

import io
import logging
import re
import time

import pytest
from rich.console import Console

from mm import progress
from mm.progress import Course, clock, followed


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 80 columns is sent; it draws at once."""
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "terminal", lambda: console)
    monkeypatch.setattr(progress, "SHOWN_AFTER", 0.0)
    monkeypatch.setattr(progress, "DRAWN_EVERY", 0.0)
    return file


def test_a_log_has_a_line_now_and_then_with_the_time_left(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def note() -> str:
        asked.append(1)
        return "loss 2.1"

    monkeypatch.setattr(progress, "terminal", lambda: Console(file=io.StringIO()))
    with caplog.at_level(logging.INFO, "mm.progress"), Course("training: steps", 3000, done=1000, note=note) as course:
        course.advance(10)
        assert not caplog.messages and not asked
        course.started -= 100
        course.logged -= progress.LOGGED_EVERY
        course.advance(990)
        course.advance(1)
    (line,) = caplog.messages
    assert line == "training: steps: 2,000 of 3,000, 10 a second, 1:40 left, loss 2.1" and len(asked) == 1
    printed = capsys.readouterr()
    assert not printed.out and not printed.err


def test_a_terminal_has_one_line_of_eighty_columns(drawn: io.StringIO) -> None:
    long = "features of the frozen image trunk for a_set_with_a_long_name/train, view 1 of 2"
    for description in ("training: steps", long):
        with Course(description, 1_000_000, note=lambda: "loss 2.135, stage 3") as course:
            course.advance(123_456)
            time.sleep(0.01)
            course.advance(123_456)
            course.bar.refresh()
            lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.getvalue()).splitlines()
        last = lines[-1]
        assert len(last) <= 80 and "246912/1000000" in last and "loss 2.135" in last
        assert last.startswith(description[:15])


def test_a_short_loop_draws_nothing(drawn: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOWN_AFTER", 60.0)
    assert list(followed(range(5), "items", 5)) == [0, 1, 2, 3, 4]
    assert not drawn.getvalue().strip()


def test_what_is_followed_counts_to_its_total(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def advance(self: Course, count: int) -> None:
        counted.append(count)
        self.done += count

    monkeypatch.setattr(Course, "advance", advance)
    assert len(list(followed(range(0, 10, 4), "rows", 10, 4))) == 3
    assert counted == [4, 4, 2]


@pytest.mark.parametrize("seconds, written", [(0.4, "0:00"), (7, "0:07"), (754, "12:34"), (3723, "1:02:03")])
def test_a_clock_is_read_at_a_glance(seconds: float, written: str) -> None:
    assert clock(seconds) == written
