"""Inputs come in their order, two batches at most are read at a time."""

import threading

from mm.infer.ahead import read_ahead


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
