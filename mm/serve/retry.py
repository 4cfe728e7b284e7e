"""What Ray's proxies do where a replica dies with requests: each goes to another replica, once.

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=mm.serve.retry:middlewares serve run ray.yaml

Ray gives a request that a replica has accepted to no other, and answers it with a bare 500. Here no request changes
anything, so that one may be computed twice.
"""

import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import JSONResponse

logger = logging.getLogger(__name__)
CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""The variable in which Ray reads what gives its proxies their middleware."""
MIDDLEWARES = "mm.serve.retry:middlewares"
TRIES = 2
"""How often a request is given to a replica that then dies."""
AFTER = "5"
"""Seconds after which to try again, of a request that is refused."""
LINES = b"application/x-ndjson"
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def middlewares() -> list[Middleware]:
    """What Ray puts around its proxies."""
    return [Middleware(Retry)]


class Retry:
    """ASGI middleware: a request that gets no answer is asked again, then refused with one line.

    Args:
        app: the proxy, which returns without an answer where a replica dies.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(receive)
        for _ in range(TRIES):
            answer = Answer(send)
            await self.app({**scope, "headers": list(scope["headers"])}, request.reader(), answer)
            if answer.begun:
                await answer.end()
                return
            if request.left:
                return
            logger.warning("the replica that had a request to %s died", scope["path"])
        said = {"error": "the replicas that had this request died"}
        refusal = JSONResponse(said, 503, {"Retry-After": AFTER})
        await refusal(scope, receive, send)


class Request:
    """A request's messages, which are kept to be read again.

    Args:
        receive: gives them.
    """

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.messages: list[Message] = []
        self.left = False
        """Whether the client has gone."""

    def reader(self) -> Receive:
        """What gives the messages from the first on."""
        kept = iter(tuple(self.messages))

        async def read() -> Message:
            for message in kept:
                return message
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self.left = True
            else:
                self.messages.append(message)
            return message

        return read


class Answer:
    """Passes an answer on. Its status waits for the first of its body, so that nothing is sent of a replica that dies
    between them.

    Args:
        send: to the client.
    """

    def __init__(self, send: Send) -> None:
        self.send = send
        self.start: Message | None = None
        self.begun = False
        self.whole = False

    async def __call__(self, message: Message) -> None:
        """Take the next of its messages."""
        if message["type"] == "http.response.start":
            self.start = message
            return
        if self.start is not None and not self.begun:
            self.begun = True
            await self.send(self.start)
        self.whole = not message.get("more_body", False)
        await self.send(message)

    async def end(self) -> None:
        """Say in a stream of lines that it was cut off; of any other answer uvicorn closes the connection."""
        assert self.start is not None  # of what has begun
        if not self.whole and (b"content-type", LINES) in self.start["headers"]:
            line = json.dumps({"error": "the replica that wrote it died"}) + "\n"
            await self.send({"type": "http.response.body", "body": line.encode()})
