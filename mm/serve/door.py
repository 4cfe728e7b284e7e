"""Who comes in: hosts and tokens, and how many requests ended how."""

import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from fastapi.responses import JSONResponse, RedirectResponse

from mm.serve.metrics import Metrics

COOKIE = "mm_token"
LOCAL = {"localhost", "127.0.0.1", "[::1]"}
OPEN = {"/health"}
"""Paths that need no token: what looks whether the server lives has none."""
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]


class Door:
    """ASGI middleware in front of everything.

    Args:
        app: behind it.
        direct: what answers a POST to a path without passing through the app: its layers take as long as all the rest.
        metrics: are kept.
        token: that requests must bring; None for none.
        local: whether only names of this machine are answered, so that no page of another site reaches the server by a
            name of its own that leads here (DNS rebinding).
        paths: that metrics name; all others are one.
    """

    def __init__(
        self,
        app: App,
        direct: Mapping[str, App],
        metrics: Metrics,
        token: str | None,
        local: bool,
        paths: set[str],
    ) -> None:
        self.app = app
        self.direct = direct
        self.metrics = metrics
        self.token = token
        self.local = local
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self.paths else "other"
                self.metrics.requests[path, message["status"]] += 1
            await send(message)

        answer = self._refusal(scope)
        if answer is None and scope["method"] == "POST":
            answer = self.direct.get(scope["path"])
        await (answer or self.app)(scope, receive, counted)

    def _refusal(self, scope: Scope) -> App | None:
        host = _header(scope, b"host").lower()
        if self.local and host.rpartition(":")[0] not in LOCAL and host not in LOCAL:
            return JSONResponse({"error": f"host {host!r} is none of this machine"}, 421)
        if self.token is None or scope["path"] in OPEN:
            return None
        (asked,) = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[:1]
        if scope["path"] == "/" and self._fits(asked):
            welcome = RedirectResponse("/", 303)
            welcome.set_cookie(COOKIE, asked, httponly=True, samesite="strict")
            return welcome
        brought = _header(scope, b"authorization").removeprefix("Bearer ") or _cookie(_header(scope, b"cookie"))
        if self._fits(brought):
            return None
        return JSONResponse({"error": "a token is needed: Authorization: Bearer TOKEN, or /?token=TOKEN"}, 401)

    def _fits(self, token: str) -> bool:
        assert self.token is not None
        return hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode())


def _header(scope: Scope, name: bytes) -> str:
    """The last of a name, or nothing."""
    found = b""
    for each, value in scope["headers"]:
        if each == name:
            found = value
    return found.decode("latin-1")


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""
