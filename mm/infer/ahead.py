"""Inputs read by a thread pool while the model is at work, two batches at most at a time."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

THREADS = min(8, os.cpu_count() or 1)


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
