"""A real server under the load of many clients, beside LitServe's own loop, with a model that does nothing for 4 ms."""

import asyncio
import csv
import json
import multiprocessing
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from kernels.ranges import check_ranges
from mm.artifacts.environment import commit, hardware
from mm.artifacts.interrupted import Interrupted, sigterm_raises
from mm.bench.load import Ask, Load, closed_loop
from mm.compress.quantize import WHOLE
from mm.data.media import encode_image
from mm.files import write_json
from mm.infer.decoding import Decoding
from mm.optional import require
from mm.serve.command import Served, run_server, serve
from mm.serve.config import BatchingConfig, ServeConfig
from mm.serve.engine import WORDS, Continuing, Engine, ServeRun, Told
from mm.serve.inputs import Row

NOTHING = 0.004
"""Seconds that the model that does nothing takes for a batch of any size."""
SIZE = 16
WAIT = 0.005
PATIENCE = 600.0
"""Seconds in which a server must have begun."""


@dataclass(frozen=True)
class ServingBench:
    """What is loaded."""

    seconds: Annotated[float, "(0, inf)"] = 5.0
    """Of each load."""
    clients: Annotated[tuple[int, ...], "[1, inf)"] = (16, 128)
    """At once."""
    run: str | None = None
    """A finished run whose own models are served too; without one only what does nothing is."""
    soak: Annotated[float, "[0, inf)"] = 0.0
    """Seconds for which the most clients ask the run for vectors, and then for captions, instead of all that; what is
    lost, answered twice or kept in memory is counted."""
    flame: Path | None = None
    """Where to draw a flame graph of the server with the most clients, instead of all that; needs py-spy."""
    arrivals: Path | None = None
    """Where to write when the requests of the first load came, as a recorded trace."""
    json: str | None = None
    """Where to write what was found."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Serving:
    """A server of this machine: the port it listens on, and the group of its processes."""

    port: int
    group: int


class Idle:
    """An engine that does nothing for 4 ms, and gives back what it was given."""

    kinds: Sequence[str] = ("text",)
    digest = "nothing"
    bits = WHOLE
    joins: Sequence[str] = ()

    def run(
        self, kind: str, payloads: Sequence[Any], told: Told, continuing: Continuing | None = None
    ) -> Sequence[Any]:
        """N texts -> N numbers (1,), their own."""
        time.sleep(NOTHING)
        return [np.array([float(payload)]) for payload in payloads]

    def examples(self) -> Iterator[tuple[str, Any]]:
        """One."""
        yield "text", "0"


class Unread:
    """Texts as they are: what is timed is the server."""

    def read(self, modality: str, given: Any) -> Row:
        """A text -> a row of one token."""
        return Row(modality, 1, given)


def serve_idle(port: int) -> None:
    """Our server in front of the engine that does nothing."""
    config = ServeConfig("nothing", port=port, batching=BatchingConfig(size=SIZE, delay=1000 * WAIT))
    run_server(Served(Idle, Unread(), Idle.kinds), config)  # type: ignore[arg-type]


def serve_litserve(port: int) -> None:
    """LitServe as its documentation has it, in front of the same."""
    from mm.bench.litserve_peer import IdleAPI, LitServer

    server = LitServer(IdleAPI(max_batch_size=SIZE, batch_timeout=WAIT), accelerator="cpu", devices=1)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, log_level="error")


@contextmanager
def served(start: Callable[..., None], *arguments: Any) -> Iterator[Serving]:
    """A server in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=_in_group, args=(start, port, *arguments))
    process.start()
    try:
        until_healthy(port)
        yield Serving(port, process.pid or 0)
    finally:
        process.terminate()
        process.join(30)
        with suppress(ProcessLookupError):  # LitServe leaves its processes behind when it is terminated
            os.killpg(process.pid or 0, signal.SIGKILL)


def _in_group(start: Callable[..., None], *arguments: Any) -> None:
    """Serve in a group of processes of its own."""
    os.setpgrp()
    with suppress(Interrupted), sigterm_raises():
        start(*arguments)


def until_healthy(port: int) -> None:
    """Wait until a server says that it is ready."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError(f"no server at port {port} within {PATIENCE:.0f} s")


def serve_run(port: int, run: str) -> None:
    """Our server in front of a run's own models."""
    serve(ServeConfig(run, port=port, batching=BatchingConfig(size=SIZE)))


def run_rows(run: str, seconds: float) -> Iterator[dict[str, Any]]:
    """A run's texts and images, served to twice as many clients as fit a batch.

    Yields:
        a row for each, with the share of what full batches reach that nobody has to ask for: the same inputs, decoded
        beforehand, computed batch after batch in this process.
    """
    engine = ServeRun(run, "auto", Decoding())()
    bodies = {
        "text": Ask("/embed", WORDS.encode(), "text/plain"),
        "image": Ask("/embed", png_of_noise(), "image/png"),
    }
    payloads = dict(engine.examples())
    limits = {kind: offline_rate(engine, kind, payloads[kind], seconds) for kind in bodies if kind in payloads}
    with served(serve_run, run) as serving:
        for kind, limit in limits.items():
            load = asyncio.run(closed_loop(serving.port, 2 * SIZE, seconds, constantly(bodies[kind])))
            facts = load.facts()
            share = round(load.statuses[200] / load.seconds / limit, 3)
            about = {"server": "this server", "model": f"{Path(run).name}: {kind}", "clients": 2 * SIZE}
            yield {**about, **facts, "full_batches": round(limit, 1), "of_full_batches": share}


def offline_rate(engine: Engine, kind: str, payload: Any, seconds: float) -> float:
    """Inputs a second of full batches, one after the other."""
    batch = [payload] * SIZE
    engine.run(kind, batch, lambda place, text: None)
    started = time.perf_counter()
    batches = 0
    while time.perf_counter() - started < seconds:
        engine.run(kind, batch, lambda place, text: None)
        batches += 1
    return batches * SIZE / (time.perf_counter() - started)


def png_of_noise() -> bytes:
    """An image file of 64 pixels a side."""
    noise = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    return encode_image(noise, "png")


def constantly(ask: Ask) -> Callable[[int], Ask]:
    """The same request, whatever its number."""
    return lambda number: ask


def numbered(path: str, key: str) -> Callable[[int], Ask]:
    """Requests that each hold their number, and want it back."""

    def ask(number: int) -> Ask:
        body = json.dumps({"text": str(number)}).encode()
        return Ask(path, body, right=lambda answer: float(np.ravel(json.loads(answer)[key])[0]) == number)

    return ask


def bench_serving(config: ServingBench) -> None:
    """Load each server, print a table, write it to `config.json`."""
    require("litserve", "serve")
    rows: list[dict[str, Any]] = []
    peers = {"this server": (serve_idle, "/embed", "vectors"), "LitServe": (serve_litserve, "/predict", "number")}
    for name, (starting, path, key) in peers.items():
        with served(starting) as serving:
            for clients in config.clients:
                load = asyncio.run(closed_loop(serving.port, clients, config.seconds, numbered(path, key)))
                rows.append({"server": name, "model": "nothing, 4 ms", "clients": clients, **load.facts()})
                if config.arrivals is not None and name == "this server" and clients == config.clients[0]:
                    write_arrivals(config.arrivals, load)
    if config.run is not None:
        rows.extend(run_rows(config.run, config.seconds))
    Console().print(load_table(rows))
    if config.json:
        write_json(Path(config.json), {**about_this_machine(), "wait": WAIT, "seconds": config.seconds, "rows": rows})


def about_this_machine() -> dict[str, Any]:
    """For a result file: commit, hardware, cores that server and clients share, and items of a batch at most."""
    cores = len(os.sched_getaffinity(0))
    return {"commit": commit(), "hardware": hardware(torch.device("cpu")), "cores": cores, "batch": SIZE}


def write_arrivals(path: Path, load: Load) -> None:
    """A trace as `mm.serve.traces.Trace.load` reads it; texts of 4 to 24 tokens are drawn."""
    random = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["TIMESTAMP", "ContextTokens"])
        for sent in sorted(load.sent):
            writer.writerow([f"{sent:.6f}", int(random.integers(4, 25))])


def load_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A row for each load."""
    table = Table(title="closed loop, clients on the same cores", title_justify="left")
    for column in ("server", "model", "clients", "requests/s", "p50 ms", "p95 ms", "p99 ms", "other", "wrong", "full"):
        table.add_column(column, justify="left" if column in ("server", "model") else "right")
    for row in rows:
        cells = [row["server"], row["model"], f"{row['clients']}", f"{row['requests_a_second']:,.0f}"]
        cells += [f"{row[name]:.1f}" for name in ("p50", "p95", "p99")]
        of_full = f"{100 * row['of_full_batches']:.0f} %" if "of_full_batches" in row else ""
        table.add_row(*cells, str(sum(row["other_statuses"].values())), str(row["wrong"]), of_full)
    return table
