"""The addresses of a server: what each takes and answers. Every refusal is JSON with one line, `error`."""

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException as RoutingException
from starlette.requests import ClientDisconnect

from mm.serve.config import ServeConfig, is_local
from mm.serve.connection import WHOLE
from mm.serve.door import App, Door, Scope
from mm.serve.gallery import described
from mm.serve.inputs import Given, Refused, given_in, given_of, json_object
from mm.serve.metrics import CONTENT_TYPE
from mm.serve.page import POLICY, hits_html, search_page
from mm.serve.service import Service

logger = logging.getLogger(__name__)
VECTORS = "application/octet-stream"
LINES = "application/x-ndjson"
MOST_FOUND = 100
"""Images of one search."""
JSON_BODY = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        name: {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}], "description": about}
        for name, about in {
            "text": "a text, or a list of them",
            "image": "the file of an image in base64, or a list of them",
            "audio": "the file of a sound in base64, or a list of them",
        }.items()
    },
}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": JSON_BODY},
            "text/plain": {"schema": {"type": "string"}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "audio/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class Handlers:
    """What each address does.

    Args:
        service: that computes.
        config: of the server.
    """

    def __init__(self, service: Service, config: ServeConfig) -> None:
        self.service = service
        self.limits = config.limits
        self.page = search_page(Path(config.model).name, service.kinds, service.gallery)

    async def embed(self, request: Request) -> Response:
        """Unit vectors of inputs of one modality: JSON, or with `Accept: application/octet-stream` float32 rows, little
        endian, whose shape is in the header X-Shape."""
        vectors = await self.service.embed(await self._given(request))
        if VECTORS in request.headers.get("accept", ""):
            content = np.ascontiguousarray(vectors, dtype="<f4").tobytes()
            return Response(content, media_type=VECTORS, headers={"X-Shape": "{},{}".format(*vectors.shape)})
        return Response(vectors_json(vectors, self.service.dispatcher.digest), media_type="application/json")

    async def match(self, request: Request) -> Response:
        """Log-odds and probabilities that images and texts are pairs."""
        log_odds = await self.service.match(await self._given(request))
        probabilities = [1 / (1 + math.exp(-min(max(each, -50.0), 50.0))) for each in log_odds]
        return _json({"log_odds": log_odds, "probabilities": probabilities})

    async def search(self, request: Request, k: int = 12, stage: str = "embedding") -> Response:
        """The images nearest to an input. `like` in a JSON body names an image of the index; `stage=reranked` orders
        what a text finds by the joint reading."""
        if not 1 <= k <= MOST_FOUND:
            raise Refused(422, f"k={k}: 1 to {MOST_FOUND} images are found")
        if stage not in ("embedding", "reranked"):
            raise Refused(422, f"stage={stage!r}: there are embedding and reranked")
        body, kind = await self._body(request)
        like = json_object(body) if kind.startswith("application/json") else {}
        if "like" in like:
            found = await self.service.similar(_number(like), k)
        else:
            found = await self.service.search(self._read(body, kind, like), k, stage == "reranked")
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(await self.service.in_thread(hits_html, found, self.service.gallery, stage))
        return _json({"hits": described(found), "stage": stage})

    async def caption(self, request: Request) -> Response:
        """A caption of an image or a sound, a line of JSON for each state of it; with `Accept: application/json` the
        last alone."""
        stream = self.service.write(await self._given(request))
        if "application/json" in request.headers.get("accept", ""):
            *_, text = [each async for each in stream]
            return _json({"caption": text})
        first = await anext(stream)  # what is refused is refused before a status is sent
        return StreamingResponse(_lines(first, stream), media_type=LINES)

    async def image(self, number: int) -> Response:
        """An image of the index, whole, at most 640 pixels a side."""
        if self.service.gallery is None:
            raise Refused(404, "there is no index")
        shown = await self.service.in_thread(self.service.gallery.shown, number)
        return Response(shown.content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})

    async def health(self) -> Response:
        """200 where an engine is ready, 503 where none is; the bits of its weights."""
        dispatcher = self.service.dispatcher
        state = {"engines": dispatcher.engines, "kinds": list(self.service.kinds), "bits": dispatcher.bits}
        return _json(state, 200 if dispatcher.engines else 503)

    async def metrics(self) -> Response:
        """For Prometheus."""
        dispatcher = self.service.dispatcher
        now = {"mm_waiting_items": float(dispatcher.waiting), "mm_engines": float(dispatcher.engines)}
        if dispatcher.bits is not None:
            now["mm_weight_bits"] = float(dispatcher.bits)
        return Response(dispatcher.metrics.text(now), media_type=CONTENT_TYPE)

    async def index_page(self) -> Response:
        """The search page."""
        return HTMLResponse(self.page, headers={"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"})

    async def _given(self, request: Request) -> Given:
        body, kind = await self._body(request)
        return given_in(body, kind, self.limits)

    def _read(self, body: bytes, kind: str, content: dict[str, Any]) -> Given:
        return given_of(content, self.limits) if content else given_in(body, kind, self.limits)

    async def _body(self, request: Request) -> tuple[bytes, str]:
        """The body, and what its header says it is. Raises Refused where it is too large, too slow or cut off."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(None if request.scope.get(WHOLE) else self.limits.seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > self.limits.bytes:
                        raise Refused(413, f"the body is larger than {self.limits.megabytes:g} MB")
                    parts.append(part)
        except TimeoutError:
            raise Refused(408, f"the body did not come within {self.limits.seconds:g} seconds") from None
        except ClientDisconnect:
            raise Refused(400, "the body was cut off") from None
        if not size:
            raise Refused(400, "the body is empty")
        return b"".join(parts), request.headers.get("content-type", "")


def build_app(service: Service, config: ServeConfig, lifespan: Lifespan) -> Door:
    """An ASGI application.

    Args:
        service: that computes.
        config: of the server.
        lifespan: what runs while it serves.
    """
    # The documentation's pages fetch scripts from another address; its JSON does not.
    app = FastAPI(title=f"mm-align: {Path(config.model).name}", docs_url=None, redoc_url=None, lifespan=lifespan)
    handlers = Handlers(service, config)
    routes = {
        "/embed": handlers.embed,
        "/match": handlers.match,
        "/search": handlers.search,
        "/caption": handlers.caption,
    }
    for path, handler in routes.items():
        app.add_api_route(path, handler, methods=["POST"], openapi_extra=BODY, response_class=JSONResponse)
    app.add_api_route("/images/{number}", handlers.image, methods=["GET"], response_class=Response)
    app.add_api_route("/health", handlers.health, methods=["GET"])
    app.add_api_route("/metrics", handlers.metrics, methods=["GET"], response_class=Response)
    app.add_api_route("/", handlers.index_page, methods=["GET"], response_class=HTMLResponse)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(RoutingException, _not_there)
    app.add_exception_handler(HTTPException, _not_there)
    app.add_exception_handler(Exception, _failed)
    return Door(
        app,
        {path: direct(routes[path]) for path in ("/embed", "/match", "/caption")},
        metrics=service.dispatcher.metrics,
        token=config.token,
        local=is_local(config.host),
        paths={*routes, "/health", "/metrics", "/"},
    )


def direct(handler: Callable[[Request], Awaitable[Response]]) -> App:
    """A handler as an ASGI application of its own, whose refusals are answered as FastAPI's are."""

    async def answer(scope: Scope, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        try:
            response = await handler(request)
        except Refused as error:
            response = await _refused(request, error)
        except Exception as error:
            logger.exception("%s failed", scope["path"])
            response = await _failed(request, error)
        await response(scope, receive, send)

    return answer


def vectors_json(vectors: np.ndarray, digest: str | None) -> str:
    """JSON of vectors (N, E) float32 and of the digest of the model they are of.

    Nine digits are a float32. As the float64 that Python takes it for it would have seventeen, which json finds in
    three times as long.
    """
    row = "[" + ", ".join(["%.9g"] * vectors.shape[1]) + "]"
    rows = ", ".join([row % tuple(vector) for vector in vectors.tolist()])
    return f'{{"vectors": [{rows}], "model": {json.dumps(digest)}}}'


def _json(content: Any, status: int = 200) -> Response:
    return Response(json.dumps(content), status, media_type="application/json")


def _number(content: dict[str, Any]) -> int:
    """The image that a body names."""
    like = content["like"]
    if len(content) > 1 or not isinstance(like, int) or isinstance(like, bool):
        raise Refused(422, "like names one image by its number, and nothing stands beside it")
    return like


async def _lines(first: str, stream: AsyncIterator[str]) -> AsyncIterator[str]:
    text = first
    yield json.dumps({"text": text}) + "\n"
    try:
        async for text in stream:
            yield json.dumps({"text": text}) + "\n"
    except Refused as error:
        yield json.dumps({"error": error.message}) + "\n"
        return
    yield json.dumps({"caption": text}) + "\n"


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    response = _json({"error": error.message}, error.status)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return response


async def _failed(request: Request, error: Exception) -> Response:
    return _json({"error": f"{request.url.path} failed; the server's log says how"}, 500)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _json({"error": f"{where}: {first['msg']}"}, 422)


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, RoutingException)
    return _json({"error": f"{request.method} {request.url.path}: {error.detail}"}, error.status_code)
