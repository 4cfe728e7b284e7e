"""Inputs come in their order, two batches at most are read at a time, and long loops say how far they are."""

import logging
import threading

import pytest

from mm.infer import ahead
from mm.infer.ahead import Course, read_ahead


def test_the_order_is_kept_and_no_more_than_two_batches_are_begun() -> None:
    begun: list[int] = []

    def read(item: int) -> int:
        begun.append(item)
        return item * item

    found = []
    for number, batch in enumerate(read_ahead(range(11), read, 3)):
        found.extend(future.result() for future in batch)
        assert len(begun) <= 3 * (number + 2)
    assert found == [item * item for item in range(11)]


def test_nothing_is_read_after_the_caller_has_gone() -> None:
    before = threading.active_count()
    for _ in read_ahead(range(1000), lambda item: item, 10):
        break
    assert threading.active_count() <= before


def test_without_a_terminal_a_long_loop_logs_and_a_short_one_is_silent(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, "mm.infer.ahead"), Course("images", 3000, 10) as course:
        course.advance(10)
        assert not caplog.messages
        monkeypatch.setattr(ahead, "LOGGED_EVERY", 0.0)
        course.advance(1000)
    (line,) = caplog.messages
    assert line.startswith("images: 1,010 of 3,000, ") and line.endswith(" a second")
    printed = capsys.readouterr()
    assert not printed.out and not printed.err
