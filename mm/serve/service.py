"""What a server does with inputs: each goes to an engine in some batch, and what belongs together comes back together.

It knows no HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from mm.infer.ahead import THREADS
from mm.serve.batcher import Item
from mm.serve.engine import CAPTION, MATCH
from mm.serve.gallery import Found, Gallery
from mm.serve.inputs import Given, InputReader, Refused, Row, one_modality
from mm.serve.metrics import Metrics

WRITING = 10
"""How many times as long a caption may take as anything else."""
RERANKED = 20
"""Images that are re-ranked, the nearest."""


class Dispatching(Protocol):
    """Gets inputs computed: by processes of this machine (`Dispatcher`), or by a replica of Ray Serve."""

    metrics: Metrics
    digest: str | None
    bits: int | None

    @property
    def engines(self) -> int:
        """How many are ready or at work."""

    @property
    def waiting(self) -> int:
        """Inputs that no engine computes yet."""

    def submit(self, kind: str, tokens: int, payload: Any, seconds: float) -> Item:
        """Take in one input; its result is awaited at `item.payload.result`. Raises Refused where too many wait."""

    def withdraw(self, item: Item) -> None:
        """Nobody waits for an item any more."""


class Service:
    """Embeds, matches, searches and writes.

    Args:
        dispatcher: to engines.
        reader: of inputs.
        kinds: that engines compute.
        seconds: in which an input is computed, or refused.
        gallery: that is searched, if any.
    """

    def __init__(
        self,
        dispatcher: Dispatching,
        reader: InputReader,
        kinds: Sequence[str],
        seconds: float,
        gallery: Gallery | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        self.reader = reader
        self.kinds = kinds
        self.seconds = seconds
        self.gallery = gallery
        self.threads = ThreadPoolExecutor(THREADS)

    async def in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What would hold up every other request: decoding, and searching."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, call, *arguments)

    async def rows(self, modality: str, inputs: Sequence[Any]) -> list[Row]:
        """N inputs, checked and decoded. Raises Refused, naming the input's place."""
        if modality == "text":  # takes less time than a thread
            return [self.reader.read(modality, given) for given in inputs]
        reads = [self.in_thread(self.reader.read, modality, given) for given in inputs]
        found = await asyncio.gather(*reads, return_exceptions=True)
        for number, row in enumerate(found):
            if isinstance(row, Refused) and len(inputs) > 1:
                raise Refused(row.status, f"{modality} {number}: {row.message}")
            if isinstance(row, BaseException):
                raise row
        return found  # type: ignore[return-value]  # no exception is left among them

    async def compute(self, kind: str, rows: Sequence[Row]) -> list[Any]:
        """N rows of a kind -> N results. Where one fails the others are withdrawn."""
        self._require(kind)
        items: list[Item] = []
        try:
            for row in rows:
                items.append(self.dispatcher.submit(kind, row.tokens, row.payload, self.seconds))
            return [await item.payload.result for item in items]
        except BaseException:
            for item in items:
                self.dispatcher.withdraw(item)
            raise

    async def embed(self, given: Given) -> np.ndarray:
        """Inputs of one modality -> unit vectors (N, E) float32."""
        modality, inputs = one_modality(given)
        return np.stack(await self.compute(modality, await self.rows(modality, inputs)))

    async def match(self, given: Given) -> list[float]:
        """N images and N texts -> N log-odds; one of either goes with each of the other."""
        if set(given) != {"image", "text"}:
            raise Refused(422, "matching takes image and text")
        self._require(MATCH)
        images = await self.rows("image", given["image"])
        texts = await self.rows("text", given["text"])
        count = max(len(images), len(texts))
        if {len(images), len(texts)} - {1, count}:
            raise Refused(422, f"{len(images)} images and {len(texts)} texts: matching takes them in pairs")
        images = images * (count // len(images))
        texts = texts * (count // len(texts))
        return await self.compute(MATCH, [pair(x, y) for x, y in zip(images, texts, strict=True)])

    async def search(self, given: Given, count: int, reranked: bool) -> list[Found]:
        """The images nearest to one input, best first."""
        gallery = self._gallery()
        modality, inputs = one_modality(given)
        if len(inputs) > 1:
            raise Refused(422, "search takes one input at a time")
        if reranked and modality != "text":
            raise Refused(422, "only what is found for a text can be re-ranked")
        await self.in_thread(gallery.refresh)
        rows = await self.rows(modality, inputs)
        (vector,) = await self.compute(modality, rows)
        found = await self.in_thread(gallery.search, vector, max(count, RERANKED) if reranked else count)
        return (await self._reranked(rows[0], found))[:count] if reranked else found

    async def similar(self, number: int, count: int) -> list[Found]:
        """The images nearest to one of them, which is the first."""
        gallery = self._gallery()
        return await self.in_thread(gallery.search, gallery.vector(number), count)

    async def write(self, given: Given) -> AsyncIterator[str]:
        """What stands of a caption, again and again, until it is whole. Withdrawn where the caller goes away."""
        modality, inputs = one_modality(given)
        if len(inputs) > 1:
            raise Refused(422, "one image or sound is described at a time")
        kind = f"{CAPTION}{modality}"
        self._require(kind)
        (row,) = await self.rows(modality, inputs)
        item = self.dispatcher.submit(kind, row.tokens, row.payload, WRITING * self.seconds)
        told: asyncio.Queue[str | None] = asyncio.Queue()
        item.payload.told = told.put_nowait
        item.payload.result.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (text := await told.get()) is not None:
                yield text
            yield await item.payload.result
        finally:
            self.dispatcher.withdraw(item)

    async def _reranked(self, text: Row, found: list[Found]) -> list[Found]:
        gallery = self._gallery()
        images = await asyncio.gather(*[self.in_thread(gallery.row, each.number) for each in found])
        scores = await self.compute(MATCH, [pair(image, text) for image in images])
        scored = [replace(each, score=score) for each, score in zip(found, scores, strict=True)]
        return sorted(scored, key=lambda each: -each.score)

    def _gallery(self) -> Gallery:
        if self.gallery is None:
            raise Refused(404, "nothing to search: start the server with --index DIR")
        return self.gallery

    def _require(self, kind: str) -> None:
        if kind not in self.kinds:
            raise Refused(422, f"this run does {', '.join(self.kinds)}, not {kind}")


def pair(image: Row, text: Row) -> Row:
    """An image and a text that are read together."""
    return Row(MATCH, text.tokens, (image.payload, text.payload))
