"""A connection whose header must come in time: uvicorn waits for ever for the rest of one, and keeps all of it."""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST = 1 << 16
"""Bytes of a header."""
WHOLE = "mm.whole"
"""In a request's scope: whether all of it has come, so that nothing has to be waited for."""


class PatientProtocol(HttpToolsProtocol):
    """HTTP on one connection, as uvicorn speaks it. A header that is late or too long is refused with one line, and the
    connection closed.

    Args:
        seconds: in which a header must have come, from the connection's beginning or from its own first byte.
        settings: uvicorn's.
    """

    def __init__(self, *args: Any, seconds: float, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.seconds = seconds
        self.timer: asyncio.TimerHandle | None = None
        """Runs while a header is waited for: none is begun for one that comes whole, which would cost it dear."""
        self.head = 0
        self.in_head = False
        self.in_body = False
        self.completed = False

    def connection_made(self, transport: Any) -> None:
        """Nothing may come."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Read on; what the parser passes over in front of a header, such as empty lines, counts as part of it."""
        self.completed = False
        super().data_received(data)
        if self.in_head or not (self.in_body or self.completed):
            self._wait()
            self.head += len(data)
            if self.head > MOST:
                self._refuse("431 Request Header Fields Too Large", f"the header is longer than {MOST >> 10} kB")

    def on_message_begin(self) -> None:
        """A header begins, perhaps behind a request in the same bytes."""
        super().on_message_begin()
        self.in_head = True

    def on_headers_complete(self) -> None:
        """It is whole."""
        self._stop_waiting()
        self.in_head = False
        self.in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """So is the body."""
        self.in_body = False
        self.completed = True
        self.scope[WHOLE] = True  # type: ignore[typeddict-unknown-key]
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self.timer is None:
            self.timer = self.loop.call_later(self.seconds, self._late)

    def _stop_waiting(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.head = 0

    def _late(self) -> None:
        self.timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait()  # behind a request whose answer is still awaited
        else:
            self._refuse("408 Request Timeout", f"the header did not come within {self.seconds:g} seconds")

    def _refuse(self, status: str, message: str) -> None:
        self._stop_waiting()
        if self.transport.is_closing():
            return
        body = json.dumps({"error": message}).encode()
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close"
        )
        self.transport.write(head.encode() + b"\r\n\r\n" + body)
        self.transport.close()
