"""Batches to engines and results back; engines here are sockets that the test holds."""

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

zmq = pytest.importorskip("zmq", reason="serving needs the extra serve")
zmq_asyncio = pytest.importorskip("zmq.asyncio", reason="serving needs the extra serve")

from kernels.errors import UserError  # noqa: E402
from mm.serve import dispatcher as module  # noqa: E402
from mm.serve.config import BatchingConfig  # noqa: E402
from mm.serve.dispatcher import Dispatcher  # noqa: E402
from mm.serve.inputs import Refused  # noqa: E402
from mm.serve.metrics import Metrics  # noqa: E402


class Engine:
    """An engine of a process number that computes when the test says so."""

    def __init__(self, address: str, number: int) -> None:
        self.socket = zmq_asyncio.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, str(number).encode())
        self.socket.connect(address)

    async def ready(self) -> None:
        await self.socket.send(
            pickle.dumps(
                ("ready", {"kinds": ["text"], "digest": "d", "bits": 32, "joins": ["caption/image"], "seconds": {}})
            )
        )

    async def batch(self) -> tuple[int, str, list[Any]]:
        number, kind, first, payloads = await self.message()
        assert first == 0
        return number, kind, payloads

    async def message(self) -> tuple[int, str, int, list[Any]]:
        return pickle.loads(await asyncio.wait_for(self.socket.recv(), 10))

    async def done(self, number: int, results: list[Any], first: int = 0) -> None:
        await self.socket.send(pickle.dumps(("done", number, first, results)))


Case = Callable[[Dispatcher, Callable[[int], Engine], set[int]], Awaitable[None]]


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Case], None]:
    """played(case) with a dispatcher, what makes engines, and the numbers of those that are alive."""
    monkeypatch.setattr(module, "LOOKED_AFTER", 0.05)

    async def play(case: Case) -> None:
        alive = {1, 2, 3}
        dispatcher = Dispatcher(BatchingConfig(4, forecast=False), Metrics(), alive.__contains__, 6)
        address = f"ipc://{tmp_path}/engines"
        await dispatcher.start(address)
        engines: list[Engine] = []

        def engine(number: int) -> Engine:
            engines.append(Engine(address, number))
            return engines[-1]

        await asyncio.wait_for(case(dispatcher, engine, alive), 10)
        for each in engines:
            each.socket.close(linger=0)
        await dispatcher.stop()

    return lambda case: asyncio.run(play(case))


def test_each_gets_its_own_and_a_bad_one_fails_alone(played: Callable[[Case], None]) -> None:
    async def case(dispatcher: Dispatcher, engine: Callable[[int], Engine], alive: set[int]) -> None:
        items = [dispatcher.submit("text", 1, name, 10.0) for name in "abc"]
        one = engine(1)
        await one.ready()
        number, kind, payloads = await one.batch()
        assert (kind, payloads) == ("text", ["a", "b", "c"])
        await one.done(number, ["A", UserError("b is none"), RuntimeError("broken")])
        assert await items[0].payload.result == "A"
        with pytest.raises(Refused, match="b is none") as refused:
            await items[1].payload.result
        with pytest.raises(Refused, match="log") as failed:
            await items[2].payload.result
        assert (refused.value.status, failed.value.status) == (422, 500)
        assert dispatcher.metrics.items["text", "answered"] == 1 and dispatcher.metrics.items["text", "failed"] == 2

    played(case)


def test_what_a_dying_engine_had_goes_to_the_next_once(played: Callable[[Case], None]) -> None:
    async def case(dispatcher: Dispatcher, engine: Callable[[int], Engine], alive: set[int]) -> None:
        first, second, third = engine(1), engine(2), engine(3)
        await first.ready()
        item = dispatcher.submit("text", 1, "a", 10.0)
        number, _, _ = await first.batch()
        await second.ready()
        alive.remove(1)
        again, _, payloads = await second.batch()
        assert payloads == ["a"] and again != number
        await first.done(number, ["late"])  # of one that was taken for dead: nobody's
        alive.remove(2)
        with pytest.raises(Refused, match="died, twice"):
            await item.payload.result
        await third.ready()
        other = dispatcher.submit("text", 1, "b", 10.0)
        number, _, payloads = await third.batch()
        assert payloads == ["b"]
        await third.done(number, ["B"])
        assert await other.payload.result == "B"

    played(case)


def test_too_many_are_told_when_to_come_back(played: Callable[[Case], None]) -> None:
    async def case(dispatcher: Dispatcher, engine: Callable[[int], Engine], alive: set[int]) -> None:
        items = [dispatcher.submit("text", 1, name, 10.0) for name in "abcdef"]
        with pytest.raises(Refused) as refused:
            dispatcher.submit("text", 1, "g", 10.0)
        assert refused.value.status == 429 and refused.value.retry_after is not None
        dispatcher.withdraw(items[0])
        dispatcher.submit("text", 1, "g", 10.0)
        one = engine(1)
        await one.ready()
        assert (await one.batch())[2] == ["b", "c", "d", "e"]

    played(case)


def test_what_is_late_is_refused_and_what_is_told_is_passed_on(played: Callable[[Case], None]) -> None:
    async def case(dispatcher: Dispatcher, engine: Callable[[int], Engine], alive: set[int]) -> None:
        late = dispatcher.submit("text", 1, "late", -1.0)
        item = dispatcher.submit("text", 1, "a", 10.0)
        told: list[str] = []
        item.payload.told = told.append
        one = engine(1)
        await one.ready()
        number, _, payloads = await one.batch()
        assert payloads == ["a"]
        with pytest.raises(Refused) as refused:
            await late.payload.result
        assert refused.value.status == 503
        await one.socket.send(pickle.dumps(("told", number, 0, "so far")))
        await one.done(number, ["all"])
        assert await item.payload.result == "all" and told == ["so far"]

    played(case)


def test_captions_join_those_that_are_written_until_something_else_waits(played: Callable[[Case], None]) -> None:
    """Size 4: what has ended makes room; the engine is free when all have ended, and then computes the text."""

    async def case(dispatcher: Dispatcher, engine: Callable[[int], Engine], alive: set[int]) -> None:
        kind = "caption/image"
        one = engine(1)
        await one.ready()
        while not dispatcher.engines:
            await asyncio.sleep(0.01)
        items = [dispatcher.submit(kind, 1, "a", 10.0)]
        number, _, payloads = await one.batch()
        assert payloads == ["a"]
        items += [dispatcher.submit(kind, 1, name, 10.0) for name in "bcde"]
        joined = [await one.message() for _ in range(3)]
        assert [(n, k, first, *given) for n, k, first, given in joined] == [
            (number, kind, 1, "b"),
            (number, kind, 2, "c"),
            (number, kind, 3, "d"),
        ]
        await one.done(number, ["C"], first=2)
        assert await items[2].payload.result == "C"
        assert (await one.message())[2:] == (4, ["e"])
        text = dispatcher.submit("text", 1, "t", 10.0)
        later = dispatcher.submit(kind, 1, "f", 20.0)
        await one.done(number, ["A", "B"])
        await one.done(number, ["D", "E"], first=3)
        assert (await one.message())[1:] == ("text", 0, ["t"])
        assert [await item.payload.result for item in items] == list("ABCDE")
        assert not text.payload.result.done() and not later.payload.result.done()

    played(case)


def test_a_batch_that_others_join_ends_after_some(
    played: Callable[[Case], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "JOINED", 3)

    async def case(dispatcher: Dispatcher, engine: Callable[[int], Engine], alive: set[int]) -> None:
        one = engine(1)
        await one.ready()
        while not dispatcher.engines:
            await asyncio.sleep(0.01)
        for name in "abcd":
            dispatcher.submit("caption/image", 1, name, 10.0)
        number, _, payloads = await one.batch()
        joined = [(await one.message())[3] for _ in range(2)]
        assert (payloads, joined) == (["a"], [["b"], ["c"]])
        await one.done(number, ["A", "B", "C"])
        assert (await one.batch())[2] == ["d"]

    played(case)


def test_what_joined_a_dying_engine_goes_to_the_next_and_what_it_has_answered_does_not(
    played: Callable[[Case], None],
) -> None:
    async def case(dispatcher: Dispatcher, engine: Callable[[int], Engine], alive: set[int]) -> None:
        kind = "caption/image"
        one, two = engine(1), engine(2)
        await one.ready()
        while not dispatcher.engines:
            await asyncio.sleep(0.01)
        first, second = dispatcher.submit(kind, 1, "a", 10.0), dispatcher.submit(kind, 1, "b", 10.0)
        number, _, _ = await one.batch()
        await one.message()
        await one.done(number, ["A"])
        assert await first.payload.result == "A"
        alive.remove(1)
        await two.ready()
        again, _, payloads = await two.batch()
        assert payloads == ["b"]
        await two.done(again, ["B"])
        assert await second.payload.result == "B"

    played(case)
