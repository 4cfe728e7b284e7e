"""Many clients for minutes: does a run's own server lose a request, answer one twice, or grow?"""

import asyncio
import os
import re
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from kernels.errors import UserError
from mm.bench.load import Ask, Load, closed_loop
from mm.bench.serving import Serving, ServingBench, about_this_machine, serve_run, served
from mm.data.media import encode_image
from mm.data.scenes.folder import sample_at
from mm.files import write_json
from mm.infer.decoding import Decoding
from mm.optional import require
from mm.serve.config import RequestLimits
from mm.serve.engine import CAPTION, RunEngine, ServeRun
from mm.serve.inputs import InputReader

INPUTS = 32
"""Images, and as many texts, that clients send by turns."""
SAMPLED = 5.0
"""Seconds between two looks at memory."""
CLOSE = 1e-3
"""Of a vector's numbers: what other items of a batch change by rounding is a hundredth of it."""
MEGABYTE = 1 << 20


def soak(config: ServingBench) -> None:
    """Load a run with vectors of texts and images by turns, then with captions, each for `config.soak` seconds; print a
    table, write it to `config.json`.

    Raises:
        UserError: there is no run.
    """
    require("litserve", "serve")
    if config.run is None:
        raise UserError("--soak asks a run for vectors and captions: name it with --run")
    clients = max(config.clients)
    asks = asks_of(ServeRun(config.run, "auto", Decoding())())
    rows = []
    with served(serve_run, config.run) as serving:
        for work, asked in asks.items():
            asyncio.run(closed_loop(serving.port, clients, min(10.0, config.soak), turns(asked)))  # fills its caches
            before = answered(serving.port)
            memory: list[float] = []
            load = asyncio.run(watched(serving, clients, config.soak, asked, memory))
            counted = answered(serving.port) - before
            about = {"model": f"{Path(config.run).name}: {work}", "clients": clients, "counted": counted}
            rows.append({**about, **load.facts(), **grown(memory), "seconds": round(load.seconds, 1)})
    Console().print(soak_table(rows))
    if config.json:
        write_json(Path(config.json), {**about_this_machine(), "rows": rows})


def asks_of(engine: RunEngine) -> dict[str, list[Ask]]:
    """Requests of each work, each of which knows its answer: what the engine makes of the same file alone."""
    reader = InputReader(engine.embedder.processor, RequestLimits())
    scenes = [sample_at(0, "val", number) for number in range(INPUTS)]
    embedding = []
    captioning = []
    for scene in scenes:
        assert scene.image is not None
        given = {"text": scene.captions[0].encode(), "image": encode_image(scene.image, "png")}
        for modality, body in given.items():
            row = reader.read(modality, body.decode() if modality == "text" else body)
            (vector,) = engine.run(modality, [row.payload], lambda place, text: None)
            kind = "text/plain" if modality == "text" else "image/png"
            embedding.append(Ask("/embed", body, kind, right=_vector_is(vector), accept="application/octet-stream"))
            if CAPTION + modality in engine.kinds:
                (caption,) = engine.run(CAPTION + modality, [row.payload], lambda place, text: None)
                captioning.append(Ask("/caption", body, kind, right=_has(caption)))
    return {"text and image": embedding} | ({"captions": captioning} if captioning else {})


def turns(asks: Sequence[Ask]) -> Callable[[int], Ask]:
    """Requests by turns."""
    return lambda number: asks[number % len(asks)]


async def watched(serving: Serving, clients: int, seconds: float, asks: Sequence[Ask], memory: list[float]) -> Load:
    """The load, and beside it the megabytes of the server's processes now and again."""

    async def look() -> None:
        while True:
            memory.append(sum(resident(serving.group)) / MEGABYTE)
            await asyncio.sleep(SAMPLED)

    looking = asyncio.create_task(look())
    try:
        return await closed_loop(serving.port, clients, seconds, turns(asks))
    finally:
        looking.cancel()


def resident(group: int) -> Iterator[int]:
    """Bytes in memory of each process of a group."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if os.getpgid(int(folder.name)) == group:
                    yield int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except (ProcessLookupError, FileNotFoundError):  # one that has ended meanwhile
                continue


def grown(memory: Sequence[float]) -> dict[str, Any]:
    """Megabytes at the start, at the end and at most, and by how many they grow a minute in the second half."""
    half = np.array(memory[len(memory) // 2 :])
    minutes = np.arange(len(half)) * SAMPLED / 60
    slope = float(np.polyfit(minutes, half, 1)[0]) if len(half) > 1 else 0.0
    return {
        "memory_start": round(memory[0], 1),
        "memory_end": round(memory[-1], 1),
        "memory_most": round(max(memory), 1),
        "memory_a_minute": round(slope, 2),
    }


def answered(port: int) -> int:
    """How many inputs the server says that it has answered."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as said:
        found = re.findall(r'^mm_items_total\{.*outcome="answered"\} (\d+)$', said.read().decode(), re.MULTILINE)
    return sum(map(int, found))


def _vector_is(expected: np.ndarray) -> Callable[[bytes], bool]:
    return lambda answer: bool(np.abs(np.frombuffer(answer, "<f4") - expected).max() < CLOSE)


def _has(caption: str) -> Callable[[bytes], bool]:
    return lambda answer: caption.encode() in answer


def soak_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each work."""
    table = Table(title="closed loop of many clients for minutes", title_justify="left")
    names = ("requests_a_second", "p50", "p95", "p99", "answered", "counted", "lost", "twice", "wrong")
    for column in ("model", "clients", *names, "memory_start", "memory_end"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        cells = [str(row[name]) for name in names]
        table.add_row(
            row["model"], str(row["clients"]), *cells, f"{row['memory_start']:.0f}", f"{row['memory_end']:.0f}"
        )
    return table
