"""Ray Serve in the place of this machine's own processes: several nodes, each replica with the run's weights.

    export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=mm.serve.retry:middlewares
    serve run mm.serve.replicas:application model=/path/of/a/run
    serve run ray.yaml

Ray's proxies give each request to a replica; there it meets the application of `mm-align serve`. Ray forms batches, one
queue for each kind of input, and reads when a batch begins how long that one waits for others: the rule of `Batcher`
sets it. Ray gathers the next batch while the last is computed, and what waits no longer is a batch of its own, however
small: so a batch that begins while the engine is busy waits until the engine will be free.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from ray import serve

from mm.artifacts.settings import settings_from_dict
from mm.serve.batcher import Batcher, Item, bisected
from mm.serve.command import gallery_of
from mm.serve.config import BatchingConfig, ServeConfig
from mm.serve.cost import CostModel
from mm.serve.dispatcher import Job, failure, withdraw
from mm.serve.engine import Engine, RunEngine, load_in_bits, timed
from mm.serve.forecast import Forecast
from mm.serve.inputs import InputReader, Refused
from mm.serve.metrics import Metrics
from mm.serve.retry import CALLBACK, MIDDLEWARES
from mm.serve.service import Service

logger = logging.getLogger(__name__)


class RayBatches:
    """Gets inputs computed in a replica, in batches that Ray forms.

    Args:
        engine: of this replica, warmed up here: batches of one and of a full one of each kind are timed.
        config: of batches.
        most: items that may wait.
    """

    engines = 1

    def __init__(self, engine: Engine, config: BatchingConfig, most: int) -> None:
        self.engine = engine
        self.digest: str | None = engine.digest
        self.bits: int | None = engine.bits
        self.metrics = Metrics()
        self.most = most
        guessed = {kind: timed(engine, kind, payload, config.size) for kind, payload in engine.examples()}
        self.rule = Batcher(
            config.limits,
            lambda kind: CostModel.of_two(*guessed[kind], config.size),
            Forecast if config.forecast else None,
        )
        self.thread = ThreadPoolExecutor(1)
        self.lanes = {kind: self._lane(config.size) for kind in engine.kinds}
        self.tasks: set[asyncio.Task[None]] = set()
        self.free_at = 0.0
        """When the engine is expected to have computed all batches that have begun to leave."""

    @property
    def waiting(self) -> int:
        """Inputs that no engine computes yet."""
        return len(self.rule)

    def submit(self, kind: str, tokens: int, payload: Any, seconds: float) -> Item:
        """Take in one input; its result is awaited at `item.payload.result`. Raises Refused where too many wait."""
        if self.waiting >= self.most:
            raise Refused(429, f"{self.waiting} inputs wait already", max(0.0, self.free_at - time.monotonic()))
        now = time.monotonic()
        item = Item(kind, tokens, now, now + seconds, Job(payload, asyncio.get_running_loop().create_future()))
        self.rule.add(item)
        self.lanes[kind].set_batch_wait_timeout_s(self.wait(item, now))
        task = asyncio.create_task(self._asked(item))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return item

    def wait(self, item: Item, now: float) -> float:
        """Seconds for which a batch that begins with an item waits for others."""
        if self.free_at > now:
            return self.free_at - now
        return self.rule.hold([item], now, now)

    def withdraw(self, item: Item) -> None:
        """Nobody waits for an item any more: its place in a batch stays empty."""
        withdraw(item, self.rule, self.metrics)

    def _lane(self, size: int) -> Any:
        """Ray's queue of one kind."""

        @serve.batch(max_batch_size=size, batch_wait_timeout_s=0.0)
        async def lane(items: list[Item]) -> list[None]:
            await self._compute(items)
            return [None] * len(items)

        return lane

    async def _asked(self, item: Item) -> None:
        try:
            await self.lanes[item.kind](item)
        except Exception as error:  # of Ray's: what the engine raises is an item's result
            self._settle(item, error)

    async def _compute(self, items: list[Item]) -> None:
        """What still waits of a batch of Ray's, computed; each item gets its own result."""
        now = time.monotonic()
        batch = []
        for item in items:
            if not self.rule.remove(item):
                continue
            if now + self.rule.seconds(item.kind, item.tokens, 1) > item.deadline:
                self._settle(item, Refused(503, "no engine was free in time", max(0.0, self.free_at - now)))
            else:
                batch.append(item)
        if not batch:
            return
        self.metrics.batch.observe(len(batch))
        for item in batch:
            self.metrics.delay.observe(max(0.0, now - max(item.arrived, self.free_at)))
        longest = max(item.tokens for item in batch)
        self.free_at = max(now, self.free_at) + self.rule.seconds(batch[0].kind, longest, len(batch))
        results, seconds = await asyncio.get_running_loop().run_in_executor(
            self.thread, self._computed, batch, asyncio.get_running_loop()
        )
        self.rule.done(batch, seconds)
        for item, result in zip(batch, results, strict=True):
            self._settle(item, result)

    def _computed(self, batch: list[Item], loop: asyncio.AbstractEventLoop) -> tuple[list[Any], float]:
        """Results of a batch, and the seconds that it took; in the thread of the engine."""
        started = time.perf_counter()

        def run(places: Any) -> Any:
            def told(place: int, text: str) -> None:
                hears = batch[places[place]].payload.told
                if hears is not None:
                    loop.call_soon_threadsafe(hears, text)

            return self.engine.run(batch[0].kind, [batch[place].payload.payload for place in places], told)

        return bisected(run, range(len(batch))), time.perf_counter() - started

    def _settle(self, item: Item, result: Any) -> None:
        """Give an item what came of it."""
        self.metrics.latency.observe(time.monotonic() - item.arrived)
        failed = isinstance(result, Exception)
        self.metrics.items[item.kind, "failed" if failed else "answered"] += 1
        if item.payload.result.done():
            return
        if failed:
            item.payload.result.set_exception(result if isinstance(result, Refused) else failure(result))
        else:
            item.payload.result.set_result(result)


@serve.deployment
@serve.ingress()
class Replica:
    """The application of `mm-align serve` in front of an engine in its own process.

    Args:
        config: what is served; its folders must be there on every node. Where it listens is Ray's matter: `host` says
            whether others than this machine may ask, who then need the token.
    """

    def __init__(self, config: ServeConfig) -> None:
        embedder = load_in_bits(config.model, config.device, config.bits)
        reader = InputReader(embedder.processor, config.limits)
        engine = RunEngine(embedder, config.decoding)
        batches = RayBatches(engine, config.batching, config.limits.waiting)
        gallery = gallery_of(config, embedder, reader)
        self.config = config
        self.service = Service(batches, reader, engine.kinds, config.batching.deadline, gallery)

    def __serve_build_asgi_app__(self) -> Any:
        from mm.serve.app import build_app

        return build_app(self.service, self.config, unbound)


@asynccontextmanager
async def unbound(app: Any) -> AsyncIterator[None]:
    """A replica begins and ends with its process."""
    yield


def application(args: Mapping[str, Any]) -> Any:
    """What `serve run` deploys.

    Args:
        args: settings of `mm-align serve` by name.

    Raises:
        ValueError: there is no such setting, or it does not take the value.
    """
    config = settings_from_dict(ServeConfig, dict(args), "the application's args")
    if CALLBACK not in os.environ:
        logger.warning("what a replica has that dies is answered 500: begin Ray with %s=%s", CALLBACK, MIDDLEWARES)
    return Replica.bind(config)  # type: ignore[attr-defined]  # what the decorator makes of the class has it
