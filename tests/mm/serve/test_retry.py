"""Requests of a replica that dies, before a proxy that returns without an answer as Ray's does."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("starlette", reason="serving needs the extra serve")

from mm.serve.retry import Retry

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
LINES = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]}
BODY = [
    {"type": "http.request", "body": b"a red ", "more_body": True},
    {"type": "http.request", "body": b"circle", "more_body": False},
]
Replica = Callable[[bytes, Any], Awaitable[None]]


async def dies(body: bytes, send: Any) -> None:
    """With the request."""


async def dies_with_a_status(body: bytes, send: Any) -> None:
    """That the client must not see."""
    await send({**START, "status": 201})


async def answers(body: bytes, send: Any) -> None:
    """With what it was sent."""
    await send(START)
    await send({"type": "http.response.body", "body": body})


def writes(start: dict[str, Any]) -> Replica:
    """One line of two, and dies."""

    async def begin(body: bytes, send: Any) -> None:
        await send(start)
        await send({"type": "http.response.body", "body": b'{"text": "a"}\n', "more_body": True})

    return begin


async def lines(body: bytes, send: Any) -> None:
    """A stream that ends."""
    await send(LINES)
    await send({"type": "http.response.body", "body": b"{}\n"})


def asked(*replicas: Replica, messages: list[dict[str, Any]] = BODY) -> list[dict[str, Any]]:
    """What a client gets whose request goes to each of the replicas in turn."""
    sent: list[dict[str, Any]] = []
    coming = iter(messages)
    turns = iter(replicas)

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        scope["headers"].append((b"x-request-id", b"1"))
        assert len(scope["headers"]) == 1, "each try has headers of its own"
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        await next(turns)(body, send)

    async def receive() -> dict[str, Any]:
        return next(coming)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(Retry(proxy)({"type": "http", "path": "/embed", "headers": []}, receive, send))
    assert next(turns, None) is None, "as many are asked as needed"
    return sent


@pytest.mark.parametrize("first", [dies, dies_with_a_status])
def test_what_a_replica_had_goes_whole_to_another(first: Replica) -> None:
    assert asked(first, answers) == [START, {"type": "http.response.body", "body": b"a red circle"}]


def test_an_answer_is_asked_for_once() -> None:
    assert asked(answers) == [START, {"type": "http.response.body", "body": b"a red circle"}]


def test_what_two_replicas_die_with_is_refused_with_a_line() -> None:
    start, body = asked(dies, dies_with_a_status)
    assert start["status"] == 503 and (b"retry-after", b"5") in start["headers"]
    assert list(json.loads(body["body"])) == ["error"]


def test_a_client_that_has_gone_is_not_asked_for_again() -> None:
    assert asked(dies, messages=[BODY[0], {"type": "http.disconnect"}]) == []


def test_a_stream_that_breaks_off_says_so_or_stays_unfinished() -> None:
    *_, last = asked(writes(LINES))
    assert not last.get("more_body") and "error" in json.loads(last["body"])
    assert asked(lines) == [LINES, {"type": "http.response.body", "body": b"{}\n"}]
    *_, last = asked(writes(START))
    assert last["more_body"], "the server closes the connection of an answer that does not end"
