"""A closed loop of clients: each sends its next request when its last is answered, over a connection that it keeps."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

PATIENCE = 60.0
"""Seconds for one answer."""


@dataclass(frozen=True)
class Ask:
    """One request.

    Args:
        path: of the address.
        body: of it.
        kind: its content type.
        accept: the content type of its answer.
        right: whether the body of an answer is the one to this request.
    """

    path: str
    body: bytes
    kind: str = "application/json"
    right: Callable[[bytes], bool] = field(default=lambda answer: True)
    accept: str = "application/json"

    def message(self, host: str) -> bytes:
        """As it is sent."""
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {self.kind}\r\nAccept: {self.accept}\r\n"
            f"Content-Length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body


@dataclass
class Load:
    """What clients saw.

    Args:
        latencies: seconds of each answer.
        sent: when each request was sent, seconds of a clock.
        statuses: how many answers had each.
        wrong: answers that were another request's.
        lost: requests that got no answer.
        twice: connections on which more came than was asked for.
        seconds: from the first request to the last answer.
    """

    latencies: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    lost: int = 0
    twice: int = 0
    seconds: float = 0.0

    def facts(self) -> dict[str, object]:
        """For a result file: requests a second, and milliseconds."""
        p50, p95, p99 = (1000 * float(np.quantile(self.latencies, q)) for q in (0.5, 0.95, 0.99))
        answered = self.statuses[200]
        return {
            "requests_a_second": round(answered / self.seconds, 1),
            "p50": round(p50, 2),
            "p95": round(p95, 2),
            "p99": round(p99, 2),
            "answered": answered,
            "other_statuses": {str(status): n for status, n in self.statuses.items() if status != 200},
            "wrong": self.wrong,
            "lost": self.lost,
            "twice": self.twice,
        }


async def closed_loop(port: int, clients: int, seconds: float, ask: Callable[[int], Ask]) -> Load:
    """Load a server of this machine.

    Args:
        port: that it listens on.
        clients: at once.
        seconds: after which no client sends another request; what was sent is waited for.
        ask: gives the request of a number.
    """
    load = Load()
    numbers = iter(range(1 << 62))
    started = time.perf_counter()
    host = f"127.0.0.1:{port}"

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() - started < seconds:
            request = ask(next(numbers))
            sent = time.perf_counter()
            writer.write(request.message(host))
            try:
                status, body = await asyncio.wait_for(answer(reader), PATIENCE)
            except (TimeoutError, EOFError, ConnectionError):
                load.lost += 1
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                continue
            load.latencies.append(time.perf_counter() - sent)
            load.sent.append(sent - started)
            load.statuses[status] += 1
            load.wrong += status == 200 and not request.right(body)
        writer.write_eof()
        load.twice += len(await asyncio.wait_for(reader.read(), PATIENCE)) > 0
        writer.close()

    await asyncio.gather(*[client() for _ in range(clients)])
    load.seconds = time.perf_counter() - started
    return load


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one answer, which states its length or comes in chunks."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split(" ", 2)[1])
    if "transfer-encoding: chunked" in head:
        parts = []
        while size := int(await reader.readline(), 16):
            parts.append(await reader.readexactly(size))
            await reader.readline()
        await reader.readline()
        return status, b"".join(parts)
    _, _, rest = head.partition("content-length:")
    return status, await reader.readexactly(int(rest.split("\r\n", 1)[0]))
