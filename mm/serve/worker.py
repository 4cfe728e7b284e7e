"""The process that computes: LitServe starts it, and starts it again if it dies; our loop is in its `loop=` hook.

LitServe's own loop asks a queue of another process for one request after the other, and fails a whole batch where one
item fails. Here batches are formed where requests arrive, in one place for all processes, and come whole; a batch that
fails is bisected.
"""

import logging
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from typing import Any

import torch
import zmq
from litserve import LitAPI, LitServer
from litserve.loops.base import LitLoop

from kernels.errors import UserError
from mm.serve.batcher import bisected
from mm.serve.engine import Continuing, Engine, timed

logger = logging.getLogger(__name__)
PATIENCE = 1000
"""Milliseconds between two looks whether the server is still there."""


def threads_of(workers: int) -> int:
    """With which each of some engines computes: a core is left to the event loop, for OpenMP's threads wait for one
    another in every operation, and all wait for the one whose core is taken."""
    return max(1, ((os.cpu_count() or 1) - 1) // workers)


class Engines(LitServer):
    """LitServe's processes. What they share is held by one that outlives a SIGTERM to all at once, as a service manager
    sends it: the server needs it to end."""

    def _init_manager(self, num_api_servers: int) -> Any:
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # inherited by the process that is forked here
        try:
            return super()._init_manager(num_api_servers)
        finally:
            signal.signal(signal.SIGTERM, before)


class BatchLoop(LitLoop):
    """Takes batches from the dispatcher, and tells it what was computed.

    A message to it is the bytes of (number, kind, first, payloads), the number of a batch and the place in it of the
    first of these items: more than one message of a batch come where items join it. From it come ("ready", facts),
    ("told", number, place, text) and ("done", number, first, results), an exception in the place of each item that
    failed. Both ends are ours, on a socket that only this user can open.
    """

    def __call__(self, lit_api: LitAPI, device: str, worker_id: int, *_: Any) -> None:
        """Serve until the server ends. The other arguments are LitServe's queues, which stay empty."""
        assert isinstance(lit_api, Worker) and lit_api.engine is not None
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: what was accepted is answered first
        server = os.getppid()
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, str(os.getpid()).encode())
        socket.connect(lit_api.address)
        engine = lit_api.engine
        facts = {name: getattr(engine, name) for name in ("kinds", "digest", "bits", "joins")}
        socket.send(pickle.dumps(("ready", facts | {"seconds": lit_api.seconds})))
        while os.getppid() == server:
            if socket.poll(PATIENCE):
                Computation(engine, socket, *pickle.loads(socket.recv())).run()


class Worker(LitAPI):
    """What LitServe starts.

    Args:
        build: gives the engine, in the process that computes.
        address: of the dispatcher's socket.
        size: of a batch at most, for warm-up.
        threads: that torch computes with at most.
    """

    def __init__(self, build: Callable[[], Engine], address: str, size: int, threads: int) -> None:
        super().__init__(api_path="/batches", loop=BatchLoop())
        self.build = build
        self.address = address
        self.size = size
        self.threads = threads
        self.engine: Engine | None = None
        self.seconds: dict[str, tuple[float, float]] = {}

    def setup(self, device: str) -> None:
        """Build the engine, and warm it up: a batch of one and a full one of each kind, whose seconds are kept."""
        torch.set_num_threads(min(self.threads, torch.get_num_threads()))
        self.engine = self.build()
        for kind, payload in self.engine.examples():
            self.seconds[kind] = timed(self.engine, kind, payload, self.size)

    def predict(self, x: Any, **_: Any) -> Any:
        """LitServe's own loop would call it; ours does not."""
        raise NotImplementedError


class Computation:
    """A batch that is computed, with what joins it meanwhile.

    Args:
        engine: that computes.
        socket: of the dispatcher.
        number: of the batch.
        kind: of its items.
        first: the place in the batch of the first of these items.
        payloads: of them.
    """

    def __init__(self, engine: Engine, socket: Any, number: int, kind: str, first: int, payloads: list[Any]) -> None:
        self.engine = engine
        self.socket = socket
        self.number = number
        self.kind = kind
        self.first = first
        self.payloads = payloads
        self.ended: set[int] = set()

    def run(self) -> None:
        """Tell the dispatcher what comes of each item: where the batch fails, of each that fails alone."""
        if self.kind in self.engine.joins:
            try:
                self.engine.run(self.kind, list(self.payloads), self._told, Continuing(self._more, self._end))
            except Exception as error:
                logger.info("a batch fails, and is computed in parts: %s", error)
        rest = [place for place in range(len(self.payloads)) if place not in self.ended]
        if not rest:
            return
        results = [_sendable(result) for result in bisected(self._computed, rest)]
        if len(rest) == len(self.payloads):
            self._send("done", self.number, self.first, results)
            return
        for place, result in zip(rest, results, strict=True):
            self._send("done", self.number, self.first + place, [result])

    def _computed(self, places: Sequence[int]) -> Sequence[Any]:
        payloads = [self.payloads[place] for place in places]
        return self.engine.run(self.kind, payloads, lambda place, text: self._told(places[place], text))

    def _told(self, place: int, text: str) -> None:
        self._send("told", self.number, self.first + place, text)

    def _end(self, place: int, result: Any) -> None:
        self.ended.add(place)
        self._send("done", self.number, self.first + place, [result])

    def _more(self, most: int) -> list[Any]:
        """What has come for this batch meanwhile: the dispatcher sends nothing else to an engine that computes."""
        joined: list[Any] = []
        while len(joined) < most and self.socket.poll(0):
            _, _, _, payloads = pickle.loads(self.socket.recv())
            joined.extend(payloads)
        self.payloads.extend(joined)
        return joined

    def _send(self, *message: Any) -> None:
        self.socket.send(pickle.dumps(message))


def _sendable(result: Any) -> Any:
    """An exception as one that any process can read: its class may not be known there, or hold what cannot be sent."""
    if not isinstance(result, Exception):
        return result
    said = " ".join(str(result).split())
    if isinstance(result, UserError):
        return UserError(said)
    logger.error("an item fails alone", exc_info=result)
    return RuntimeError(f"{type(result).__name__}: {said}")
