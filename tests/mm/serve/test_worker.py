"""What a process that computes tells the dispatcher of a batch that others join."""

import os
import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

pytest.importorskip("litserve", reason="serving needs the extra serve")

from kernels.errors import UserError
from mm.serve.engine import Continuing
from mm.serve.worker import Computation, Worker, threads_of


class Socket:
    """Messages that have come, and those that were sent."""

    def __init__(self, *come: Any) -> None:
        self.come = deque(pickle.dumps(message) for message in come)
        self.sent: list[Any] = []

    def poll(self, milliseconds: int) -> int:
        return len(self.come)

    def recv(self) -> bytes:
        return self.come.popleft()

    def send(self, message: bytes) -> None:
        self.sent.append(pickle.loads(message))


class Writing:
    """An engine that writes in capitals; where others may join, two letters at a time, and `bad` fails it."""

    kinds: Sequence[str] = ("caption/image",)
    joins: Sequence[str] = ("caption/image",)
    digest = "writing"
    bits = 32

    def run(self, kind: str, payloads: Sequence[Any], told: Any, continuing: Continuing | None = None) -> Any:
        if continuing is None:
            return [self.written(payload) for payload in payloads]
        waiting = list(enumerate(payloads))
        count = len(waiting)
        while waiting:
            place, payload = waiting.pop(0)
            told(place, payload)
            continuing.ended(place, self.written(payload))
            joined = continuing.more(2)
            assert len(joined) <= 2
            waiting += enumerate(joined, count)
            count += len(joined)
        return []

    def written(self, payload: str) -> str:
        if payload == "bad":
            raise UserError("bad is none")
        return payload.upper()

    def examples(self) -> Iterator[tuple[str, Any]]:
        yield "caption/image", "a"


def test_each_result_is_told_as_soon_as_it_stands_and_by_its_place_in_the_batch() -> None:
    socket = Socket((7, "caption/image", 5, ["c"]), (7, "caption/image", 6, ["d"]), (7, "caption/image", 7, ["e"]))
    Computation(Writing(), socket, 7, "caption/image", 3, ["a", "b"]).run()
    assert next(message for message in socket.sent if message[0] == "told") == ("told", 7, 3, "a")
    done = [message[1:] for message in socket.sent if message[0] == "done"]
    assert done == [(7, 3 + place, [letter]) for place, letter in enumerate("ABCDE")]


def test_a_bad_one_that_joins_fails_alone_and_nobody_is_answered_twice() -> None:
    socket = Socket((7, "caption/image", 2, ["bad"]), (7, "caption/image", 3, ["c"]))
    Computation(Writing(), socket, 7, "caption/image", 0, ["a", "b"]).run()
    done = {message[2]: message[3] for message in socket.sent if message[0] == "done"}
    assert len([message for message in socket.sent if message[0] == "done"]) == 4
    assert (done[0], done[1], done[3]) == (["A"], ["B"], ["C"])
    (failed,) = done[2]
    assert isinstance(failed, UserError) and str(failed) == "bad is none"


@pytest.mark.parametrize(("cores", "workers", "threads"), [(1, 1, 1), (2, 1, 1), (16, 1, 15), (16, 4, 3), (4, 8, 1)])
def test_engines_leave_a_core_to_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, threads: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert threads_of(workers) == threads


def test_an_engine_computes_with_its_threads_or_with_fewer_that_were_asked_for() -> None:
    seen: list[int] = []

    class Counting(Writing):
        def run(self, kind: str, payloads: Sequence[Any], told: Any, continuing: Continuing | None = None) -> Any:
            seen.append(torch.get_num_threads())
            return super().run(kind, payloads, told, continuing)

    for asked, given in ((4, 3), (2, 3)):
        torch.set_num_threads(asked)
        Worker(Counting, "ipc://none", 2, given).setup("cpu")
        assert set(seen) == {min(asked, given)}
        seen.clear()
