"""The deployment file under `serve run`, with two replicas on this machine, one of which dies; and how long a replica's
batches wait."""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mm
from mm.artifacts.run import Run, save_run
from mm.batch import Batch
from mm.bench.load import Ask, Load, answer, closed_loop
from mm.serve.config import BatchingConfig

pytest.importorskip("ray.serve", reason="several nodes need the extra ray")

from kernels.errors import UserError
from mm.serve import replicas

FILE = Path(replicas.__file__).with_name("ray.yaml")


def test_two_replicas_give_the_run_s_vectors_also_where_one_is_killed(
    deployed: Callable[..., Any], tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch], tmp_path: Path
) -> None:
    run = tiny_run()
    run.model(tiny_batch())  # the codebooks have seen data
    save_run(run.eval(), tmp_path / "run")
    server = deployed(tmp_path / "run", FILE)
    texts = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "star")] * 10
    expected = mm.load(str(tmp_path / "run"), device="cpu").encode_text(texts).numpy()
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda text: server.ask("/embed", {"text": text}), texts))
    assert [status for status, _, _ in answers] == [200] * 60
    found = np.concatenate([said["vectors"] for _, said, _ in answers])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert server.ask("/embed", {"video": "a"})[0] == 422
    seen = {answered(server) for _ in range(40)}
    assert sum(seen) == 60 or seen == {30}, "one of the two has answered all"
    killed, kept = server.replicas(2)

    def ask(number: int) -> Ask:
        return eight_of(texts, expected, number)

    load, answers = asyncio.run(killed_while_asked(int(server.address.rpartition(":")[2]), killed, ask))
    assert set(load.statuses) == {200} and load.wrong == load.lost == load.twice == 0
    assert [status for status, _ in answers] == [200] * 8
    assert all(ask(number).right(said) for number, (_, said) in enumerate(answers))
    left = server.replicas(2)
    assert kept in left and killed not in left
    assert server.ask("/embed", {"text": texts[0]})[1]["vectors"][0] == pytest.approx(expected[0], abs=1e-4)


async def killed_while_asked(
    port: int, replica: int, ask: Callable[[int], Ask]
) -> tuple[Load, list[tuple[int, bytes]]]:
    """What is answered where a replica is killed while eight clients ask, and eight more have sent all but the end of
    a request: half of these are at that replica."""
    loaded = asyncio.create_task(closed_loop(port, 8, 4.0, ask))
    begun = []
    for number in range(8):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        message = ask(number).message(f"127.0.0.1:{port}")
        writer.write(message[:-9])
        begun.append((reader, writer, message[-9:]))
    await asyncio.sleep(1.5)
    os.kill(replica, signal.SIGKILL)
    answers = []
    for reader, writer, rest in begun:
        writer.write(rest)
        answers.append(await answer(reader))
        writer.close()
    return await loaded, answers


def eight_of(texts: Sequence[str], vectors: np.ndarray, number: int) -> Ask:
    """A request for eight texts, whose answer are their vectors."""
    places = [(number + place) % len(texts) for place in range(8)]
    body = json.dumps({"text": [texts[place] for place in places]}).encode()
    return Ask("/embed", body, right=lambda said: np.allclose(json.loads(said)["vectors"], vectors[places], 0, 1e-4))


def answered(server: Any) -> int:
    """Texts that the replica has answered which is asked."""
    lines = server.ask("/metrics")[1].decode().splitlines()
    counts = [line for line in lines if line.startswith('mm_items_total{kind="text",outcome="answered"}')]
    return int(counts[0].split()[-1]) if counts else 0


class Slow:
    """An engine whose batches take 50 ms, whatever their size; a text `bad` fails."""

    kinds: Sequence[str] = ("text",)
    digest = "slow"
    bits = 32
    joins: Sequence[str] = ()

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, kind: str, payloads: Sequence[Any], told: Any, continuing: Any = None) -> Sequence[Any]:
        time.sleep(0.05)
        self.batches.append(len(payloads))
        if "bad" in payloads:
            raise UserError("bad is none")
        return [payload.upper() for payload in payloads]

    def examples(self) -> Iterator[tuple[str, Any]]:
        yield "text", "a"


class Queue:
    """Ray's queue of one kind, as its source has it: how long a batch waits is read when it begins, and the next one is
    gathered while the last is computed."""

    def __init__(self, compute: Callable[[list[Any]], Any], size: int) -> None:
        self.compute = compute
        self.size = size
        self.seconds = 0.0
        self.items: asyncio.Queue[Any] = asyncio.Queue()
        self.one = asyncio.Semaphore(1)
        self.tasks = [asyncio.create_task(self._gather())]

    def set_batch_wait_timeout_s(self, seconds: float) -> None:
        self.seconds = seconds

    async def __call__(self, item: Any) -> None:
        await self.items.put(item)

    async def _gather(self) -> None:
        while True:
            batch = [await self.items.get()]
            end = time.monotonic() + self.seconds
            while len(batch) < self.size and (left := end - time.monotonic()) > 0:
                try:
                    batch.append(await asyncio.wait_for(self.items.get(), left))
                except TimeoutError:
                    break
            self.tasks.append(asyncio.create_task(self._run(batch)))

    async def _run(self, batch: list[Any]) -> None:
        async with self.one:
            await self.compute(batch)


def test_what_comes_while_the_engine_is_busy_is_one_batch_and_a_bad_one_fails_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas.RayBatches, "_lane", lambda self, size: Queue(self._compute, size))
    engine = Slow()

    async def asked() -> list[Any]:
        batches = replicas.RayBatches(engine, BatchingConfig(8, forecast=False), 100)
        items = [batches.submit("text", 1, "first", 10.0)]
        await asyncio.sleep(0.01)
        engine.batches.clear()
        for text in ("a", "b", "bad", "c"):
            items.append(batches.submit("text", 1, text, 10.0))
            await asyncio.sleep(0.005)
        late = batches.submit("text", 1, "late", 0.01)
        waiting = [item.payload.result for item in (*items, late)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert batches.waiting == 0 and batches.metrics.items["text", "failed"] == 2
        for task in batches.lanes["text"].tasks:
            task.cancel()
        return results

    first, a, b, bad, c, late = asyncio.run(asked())
    assert (first, a, b, c) == ("FIRST", "A", "B", "C")
    assert (bad.status, late.status) == (422, 503)
    assert engine.batches[:2] == [1, 4], "the four that came together have left together, and were halved"


def test_settings_of_a_deployment_are_those_of_the_command() -> None:
    with pytest.raises(UserError, match="the application's args"):
        replicas.application({"model": "run", "batching": {"sizes": 3}})
    with pytest.raises(UserError, match="--token"):
        replicas.application({"model": "run", "host": "0.0.0.0"})


def test_a_deployment_says_where_its_proxies_will_not_retry(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (name, value), *others = re.findall(r"export (\w+)=(\S+)", FILE.read_text())
    monkeypatch.setenv(name, value)
    replicas.application({"model": "run"})
    assert not others and not caplog.records
    monkeypatch.delenv(name)
    replicas.application({"model": "run"})
    assert f"{name}={value}" in caplog.text
