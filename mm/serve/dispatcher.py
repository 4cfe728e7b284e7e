"""Between requests and engines: one batcher for all of them, in the event loop of the server."""

import asyncio
import logging
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq
import zmq.asyncio

from kernels.errors import UserError
from mm.serve.batcher import Batcher, Item
from mm.serve.config import BatchingConfig
from mm.serve.cost import CostModel
from mm.serve.forecast import Forecast
from mm.serve.inputs import Refused
from mm.serve.metrics import Metrics

logger = logging.getLogger(__name__)
LOOKED_AFTER = 0.5
"""Seconds between two looks whether the engines are alive."""
GUESSED = (0.01, 0.05)
"""Seconds of a batch of one and of a full one, while no engine is ready."""
JOINED = 128
"""Items of a batch that others join: what it holds is let go when all of it has ended, so that it has to end."""
TRIES = 2
"""How often an item is given to an engine that then dies."""


@dataclass(eq=False)
class Job:
    """What an item's payload is in the dispatcher.

    Args:
        payload: of the engine.
        result: what comes of it.
        told: is called with what is written so far, where it is text that is written.
    """

    payload: Any
    result: "asyncio.Future[Any]"
    told: Callable[[str], None] | None = None
    tries: int = 0


def withdraw(item: Item, batcher: Batcher, metrics: Metrics) -> None:
    """Take an item whose payload is a `Job` from those that wait: nobody waits for its result any more."""
    if batcher.remove(item):
        metrics.items[item.kind, "withdrawn"] += 1
    result = item.payload.result
    if not result.cancel() and not result.cancelled():
        result.exception()  # what nobody hears of is no mistake of asyncio's


@dataclass(eq=False)
class Running:
    """A batch that an engine computes.

    Args:
        batch: its items; behind those that it began with, what has joined.
        engine: that computes it.
        began: when, by the monotonic clock.
        settled: places of items whose results have come.
        joined: whether any has joined.
    """

    batch: list[Item]
    engine: bytes
    began: float = field(default_factory=time.monotonic)
    settled: set[int] = field(default_factory=set)
    joined: bool = False

    @property
    def open(self) -> int:
        """Items whose results have not come."""
        return len(self.batch) - len(self.settled)


class Dispatcher:
    """Hands batches to engines that are idle, and their results to who waits for them.

    Args:
        config: of the batcher.
        metrics: are kept.
        alive: whether the process of a number is.
        most: items that may wait.
    """

    def __init__(self, config: BatchingConfig, metrics: Metrics, alive: Callable[[int], bool], most: int) -> None:
        self.batcher = Batcher(config.limits, self._guess, Forecast if config.forecast else None)
        self.metrics = metrics
        self.alive = alive
        self.most = most
        self.digest: str | None = None
        self.bits: int | None = None
        self.joins: frozenset[str] = frozenset()
        """Kinds whose batches others may join while they are computed."""
        self.measured: dict[str, tuple[float, float]] = {}
        """Seconds of a batch of one and of a full one, by kind, of the engines' warm-up."""
        self.idle: list[bytes] = []
        self.idle_since = 0.0
        self.running: dict[int, Running] = {}
        self.number = 0
        self.timer: asyncio.TimerHandle | None = None
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def waiting(self) -> int:
        """Inputs that no engine computes yet."""
        return len(self.batcher)

    @property
    def engines(self) -> int:
        """How many are ready or at work."""
        return len(self.idle) + len(self.running)

    async def start(self, address: str) -> None:
        """Listen to engines."""
        self.socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.bind(address)
        self.tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._look_after())]

    async def stop(self) -> None:
        """Refuse what still waits, and listen no more."""
        for task in self.tasks:
            task.cancel()
        self.socket.close(linger=0)

    def submit(self, kind: str, tokens: int, payload: Any, seconds: float) -> Item:
        """Take in one input; its result is awaited at `item.payload.result`.

        Raises:
            Refused: too many wait already.
        """
        if self.waiting >= self.most:
            raise Refused(429, f"{self.waiting} inputs wait already", self._drained_in(kind))
        now = time.monotonic()
        job = Job(payload, asyncio.get_running_loop().create_future())
        item = Item(kind, tokens, now, now + seconds, job)
        self.batcher.add(item)
        if self.idle or kind in self.joins:
            self._step()
        return item

    def withdraw(self, item: Item) -> None:
        """Nobody waits for an item any more."""
        withdraw(item, self.batcher, self.metrics)

    def _guess(self, kind: str) -> CostModel:
        one, full = self.measured.get(kind, GUESSED)
        return CostModel.of_two(one, full, self.batcher.limits.size)

    def _drained_in(self, kind: str) -> float:
        """Seconds in which what waits now will have left, about."""
        size = self.batcher.limits.size
        batches = len(self.batcher) / size / max(self.engines, 1)
        return batches * self.batcher.seconds(kind, 1, size) if kind in self.batcher.costs else 1.0

    def _step(self) -> None:
        """Give idle engines what leaves now, or let it join what is computed where none is idle."""
        self._leave()
        if not self.idle:
            for number, running in self.running.items():
                self._join(number, running)

    def _leave(self) -> None:
        """Give idle engines what leaves now, and come back when the batcher wants to be asked again."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        while self.idle:
            now = time.monotonic()
            decision = self.batcher.next(now, self.idle_since)
            self._expire(decision.expired)
            if decision.batch:
                self._send(decision.batch, now)
                continue
            if decision.again is not None:
                self.timer = asyncio.get_running_loop().call_at(decision.again, self._step)
            return

    def _expire(self, items: Sequence[Item]) -> None:
        for item in items:
            self._refuse(item, "expired", Refused(503, "no engine was free in time", self._drained_in(item.kind)))

    def _join(self, number: int, running: Running) -> None:
        """Send an engine that computes what may join its batch, a message for each: it takes as many as it has room."""
        kind = running.batch[0].kind
        if kind not in self.joins:
            return
        room = min(self.batcher.limits.size - running.open, JOINED - len(running.batch))
        if room <= 0:
            return
        decision = self.batcher.joining(kind, room, time.monotonic())
        self._expire(decision.expired)
        for item in decision.batch:
            self.metrics.delay.observe(0.0)
            item.payload.tries += 1
            message = pickle.dumps((number, kind, len(running.batch), [item.payload.payload]))
            running.batch.append(item)
            running.joined = True
            self.socket.send_multipart([running.engine, message])

    def _send(self, batch: tuple[Item, ...], now: float) -> None:
        engine = self.idle.pop(0)
        self.number += 1
        self.running[self.number] = Running(list(batch), engine, now)
        self.metrics.batch.observe(len(batch))
        for item in batch:
            self.metrics.delay.observe(max(0.0, now - max(item.arrived, self.idle_since)))
            item.payload.tries += 1
        message = pickle.dumps((self.number, batch[0].kind, 0, [item.payload.payload for item in batch]))
        self.socket.send_multipart([engine, message])

    async def _listen(self) -> None:
        while True:
            engine, message = await self.socket.recv_multipart()
            name, *rest = pickle.loads(message)
            if name == "ready":
                self._ready(engine, *rest)
            elif name == "told":
                self._told(*rest)
            else:
                self._done(*rest)

    def _ready(self, engine: bytes, facts: dict[str, Any]) -> None:
        logger.info("engine %s is ready: %s", engine.decode(), ", ".join(facts["kinds"]))
        self.digest = facts["digest"]
        self.bits = facts["bits"]
        self.joins = frozenset(facts["joins"])
        self.measured = facts["seconds"]
        self._free(engine)

    def _free(self, engine: bytes) -> None:
        if not self.idle:
            self.idle_since = time.monotonic()
        self.idle.append(engine)
        self._step()

    def _told(self, number: int, place: int, text: str) -> None:
        running = self.running.get(number)
        if running is not None and running.batch[place].payload.told is not None:
            running.batch[place].payload.told(text)

    def _done(self, number: int, first: int, results: list[Any]) -> None:
        running = self.running.get(number)
        if running is None:  # of an engine that was taken for dead
            return
        now = time.monotonic()
        running.settled.update(range(first, first + len(results)))
        if not running.open:
            del self.running[number]
            self._free(running.engine)  # first: an engine that waits costs more than an answer that does
            if not running.joined:
                self.batcher.done(running.batch, now - running.began)
        else:
            self._step()
        for item, result in zip(running.batch[first : first + len(results)], results, strict=True):
            self.metrics.latency.observe(now - item.arrived)
            if isinstance(result, Exception):
                self._refuse(item, "failed", failure(result))
                continue
            self.metrics.items[item.kind, "answered"] += 1
            if not item.payload.result.done():
                item.payload.result.set_result(result)

    def _refuse(self, item: Item, outcome: str, error: Refused) -> None:
        self.metrics.items[item.kind, outcome] += 1
        if not item.payload.result.done():
            item.payload.result.set_exception(error)

    async def _look_after(self) -> None:
        """What a dead engine had is given to another once; LitServe starts the engine again."""
        while True:
            await asyncio.sleep(LOOKED_AFTER)
            self.idle = [engine for engine in self.idle if self.alive(int(engine))]
            for number, running in list(self.running.items()):
                if self.alive(int(running.engine)):
                    continue
                logger.error("engine %s died with a batch of %d", running.engine.decode(), len(running.batch))
                del self.running[number]
                for place, item in enumerate(running.batch):
                    if place in running.settled:
                        continue
                    if item.payload.tries < TRIES:
                        self.batcher.add(item)
                    else:
                        self._refuse(item, "failed", Refused(503, "the engine that computed it died, twice", 5.0))
            self._step()


def failure(error: Exception) -> Refused:
    """What is said of an item that failed alone: an input that cannot be what was meant, or a fault of ours."""
    if isinstance(error, UserError):
        return Refused(422, str(error))
    logger.error("an input failed: %s", error)
    return Refused(500, "the model failed at this input; the server's log says how")
