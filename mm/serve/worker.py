"""The process that computes: LitServe starts it, and starts it again if it dies; our loop is in its `loop=` hook.

LitServe's own loop asks a queue of another process for one request after the other, and fails a whole batch where one
item fails. Here batches are formed where requests arrive, in one place for all processes, and come whole; a batch that
fails is bisected.
"""

import logging
import os
import pickle
import signal
from collections.abc import Callable
from typing import Any

import zmq
from litserve import LitAPI, LitServer
from litserve.loops.base import LitLoop

from kernels.errors import UserError
from mm.serve.batcher import bisected
from mm.serve.engine import Engine, timed

logger = logging.getLogger(__name__)
PATIENCE = 1000
"""Milliseconds between two looks whether the server is still there."""


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

    A message to it is the bytes of (number, kind, payloads); from it ("ready", facts), ("told", number, place, text) or
    ("done", number, results), an exception in the place of each item that failed. Both ends are ours, on a socket that
    only this user can open.
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
        facts = {"kinds": engine.kinds, "digest": engine.digest, "bits": engine.bits, "seconds": lit_api.seconds}
        socket.send(pickle.dumps(("ready", facts)))
        while os.getppid() == server:
            if socket.poll(PATIENCE):
                number, kind, payloads = pickle.loads(socket.recv())
                socket.send(pickle.dumps(("done", number, computed(engine, kind, payloads, socket, number))))


class Worker(LitAPI):
    """What LitServe starts.

    Args:
        build: gives the engine, in the process that computes.
        address: of the dispatcher's socket.
        size: of a batch at most, for warm-up.
    """

    def __init__(self, build: Callable[[], Engine], address: str, size: int) -> None:
        super().__init__(api_path="/batches", loop=BatchLoop())
        self.build = build
        self.address = address
        self.size = size
        self.engine: Engine | None = None
        self.seconds: dict[str, tuple[float, float]] = {}

    def setup(self, device: str) -> None:
        """Build the engine, and warm it up: a batch of one and a full one of each kind, whose seconds are kept."""
        self.engine = self.build()
        for kind, payload in self.engine.examples():
            self.seconds[kind] = timed(self.engine, kind, payload, self.size)

    def predict(self, x: Any, **_: Any) -> Any:
        """LitServe's own loop would call it; ours does not."""
        raise NotImplementedError


def computed(engine: Engine, kind: str, payloads: list[Any], socket: Any, number: int) -> list[Any]:
    """N payloads -> N results, an exception in the place of each that fails alone."""

    def run(places: Any) -> Any:
        def told(place: int, text: str) -> None:
            socket.send(pickle.dumps(("told", number, places[place], text)))

        return engine.run(kind, [payloads[place] for place in places], told)

    return [_sendable(result) for result in bisected(run, range(len(payloads)))]


def _sendable(result: Any) -> Any:
    """An exception as one that any process can read: its class may not be known there, or hold what cannot be sent."""
    if not isinstance(result, Exception):
        return result
    said = " ".join(str(result).split())
    if isinstance(result, UserError):
        return UserError(said)
    logger.error("an item fails alone", exc_info=result)
    return RuntimeError(f"{type(result).__name__}: {said}")
