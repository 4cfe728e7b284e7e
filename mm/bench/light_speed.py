"""A run and its exports, timed side by side from a JPEG or a string on; and the memory that they hold."""

import gc
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.errors import UserError
from kernels.parsing import parse_json
from kernels.threads import torch_threads
from kernels.timing import CPU, Contest
from mm.artifacts.run import load_run
from mm.bench.generated import written_pool
from mm.device import Precision, autocast
from mm.export.command import DESCRIPTION, ENGINES
from mm.export.graph import BATCH, Graph, graphs_of
from mm.export.onnx_runtime import open_onnx
from mm.infer.embedder import Embedder
from mm.model.causal import Condition
from mm.model.inference import GroupedExperts, prepare
from mm.model.writer import Writer
from mm.optional import require
from mm.train.memory import memory_in_use

CAPTION = "a small red circle is left of a large blue square"
TIMED = ("encode_image", "encode_text", "match", "decode_step")
EMBEDDING = ("encode_image", "encode_text")
"""Graphs that a program which searches holds."""
EAGER: dict[str, Precision] = {"eager fp32": "fp32", "eager bf16": "bf16"}
CALLS = 3
"""Before memory is read: an engine takes some of it when it first computes."""


@dataclass(frozen=True)
class Timing:
    """What is timed, and how.

    Args:
        folder: of the run.
        exports: folders of its exports.
        graphs: names; those that the run has not are passed over.
        batches: rows at a time.
        repeats: of each contestant.
    """

    folder: Path
    exports: Sequence[str]
    graphs: Sequence[str]
    batches: Sequence[int]
    repeats: int


def speed_rows(timing: Timing, threads: int) -> list[dict[str, Any]]:
    """Latencies and throughput on so many cores, JPEGs of 640×480 decoded and resized included."""
    subject = Subject(timing.folder)
    rows = []
    with torch_threads(threads), TemporaryDirectory() as folder:
        files = written_pool(Path(folder), max(timing.batches))
        for graph in subject.has(timing.graphs):
            for batch in timing.batches:
                contestants = contestants_of(timing, subject, graph, files[:batch], threads)
                contest = Contest("light", f"{graph} of {batch}", "mixed", "forward", contestants)
                for row in contest.rows(timing.repeats):
                    row["per_second"] = round(1e3 * batch / row["milliseconds"], 1)
                    rows.append(row)
    return rows


def contestants_of(
    timing: Timing, subject: "Subject", graph: str, files: Sequence[Path], threads: int
) -> dict[str, Callable[[], Any]]:
    """The run itself in float32 and bfloat16, and each of its exports, on the same files."""
    found: dict[str, Callable[[], Any]] = {}
    for name, precision in EAGER.items():
        found[name] = subject.eager(graph, files, precision)
    for folder in map(Path, timing.exports):
        described = description(folder)
        call = opened(folder, described, graph, threads)
        found[implementation(described)] = subject.exported(graph, files, call)
    return found


class Subject:
    """A run that is timed, eager or exported, from files on.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.embedder = Embedder(load_run(folder).to(CPU), str(folder))

    @cached_property
    def graphs(self) -> dict[str, Graph]:
        """All that the run does, by name, of a copy of its model."""
        run = self.embedder.run
        return {each.name: each for each in graphs_of(run.config, prepare(run.model, GroupedExperts))}

    def has(self, graphs: Sequence[str]) -> list[str]:
        """Those of some graphs that this run has."""
        return [graph for graph in graphs if graph in self.graphs]

    def eager(self, graph: str, files: Sequence[Path], precision: Precision) -> Callable[[], Any]:
        """What the run's own code does of it in a precision."""

        def inference() -> AbstractContextManager[Any]:
            return autocast(precision, CPU)

        embedder = self.embedder
        texts = [CAPTION] * len(files)
        if graph == "decode_step":
            return self.token(len(files), inference)

        def run() -> Any:
            with torch.inference_mode(), inference():
                if graph == "match":
                    return embedder.match(list(files), texts)
                return embedder.vectors(graph.removeprefix("encode_"), self.read(graph, files))

        return run

    def token(self, rows: int, inference: Callable[[], AbstractContextManager[Any]]) -> Callable[[], Any]:
        """One more token of so many sequences, behind a cache that is half full, beside an image of each."""
        writer = Writer(self.embedder.run.model)
        ids, _, _, _, beside = rows_of(self.graphs["decode_step"], rows)
        cache = writer.cache(rows)
        cache.lengths = [cache.context // 2] * rows
        condition = condition_of(beside)

        def run() -> Any:
            with torch.inference_mode(), inference():
                new = cache.new([1] * rows)
                out = writer.read(ids, None, new, new.at, condition)
                return writer.next_logits(out.x[:, -1])

        return run

    def exported(self, graph: str, files: Sequence[Path], call: Callable[..., Any]) -> Callable[[], Any]:
        """What an engine does of it."""
        if graph != "decode_step":
            return lambda: call(*self.tensors(graph, files))
        inputs = flat(rows_of(self.graphs[graph], len(files)))
        inputs[1] = torch.full_like(inputs[1], inputs[2].shape[3] // 2)
        return lambda: call(*inputs)

    def read(self, graph: str, files: Sequence[Path]) -> Any:
        """A batch of one modality."""
        processor = self.embedder.processor
        return processor.images(list(files)) if graph == "encode_image" else processor.text([CAPTION] * len(files))

    def tensors(self, graph: str, files: Sequence[Path]) -> list[Tensor]:
        """Inputs as a graph takes them, read from files."""
        parts = ("encode_image", "encode_text") if graph == "match" else (graph,)
        found = []
        for part in parts:
            modality = part.removeprefix("encode_")
            batch = self.read(part, files)
            found.append(batch.inputs[modality].contiguous())
            if modality in batch.masks:
                found.append(batch.masks[modality].contiguous())
        return found


def rows_of(graph: Graph, rows: int) -> list[Any]:
    """The inputs of a graph that it was traced with, for so many rows: the probe's in turn."""
    return [repeated(value, graph.sizes[name], rows) for name, value in graph.inputs.items()]


def repeated(value: Any, sizes: Any, rows: int) -> Any:
    """A tensor, or a group of them, with so many rows along what `sizes` calls the batch."""
    if not isinstance(value, Tensor):
        return tuple(repeated(part, size, rows) for part, size in zip(value, sizes, strict=True))
    dimension = next(at for at, size in sizes.items() if size is BATCH)
    index = torch.arange(rows) % value.shape[dimension]
    return value.index_select(dimension, index)


def flat(inputs: Sequence[Any]) -> list[Tensor]:
    """Inputs in the order of a graph, groups of them taken apart."""
    found: list[Tensor] = []
    for value in inputs:
        found += [value] if isinstance(value, Tensor) else list(value)
    return found


def condition_of(beside: tuple[Tensor, Tensor, Tensor]) -> Condition:
    """Keys and values (layers, B, H, S, D / H) and mask (B, S) of a decode step, as a model's own code takes them."""
    keys, values, mask = beside
    return Condition(list(keys.unbind()), list(values.unbind()), mask, mask.any(1))


def resident_rows(timing: Timing) -> list[dict[str, Any]]:
    """By who executes the run: by how much the resident memory of a fresh process grows until it embeds one image and
    one caption.

    Grown is what `VmRSS` says, from when everything is imported and nothing is open: weights, their repacked copies,
    graphs, and what an engine keeps of its work.
    """
    subject = Subject(timing.folder)
    graphs = subject.has(EMBEDDING)
    rows = []
    with TemporaryDirectory() as folder:
        files = written_pool(Path(folder), 1)
        inputs = {graph: [part.numpy() for part in subject.tensors(graph, files)] for graph in graphs}
        for name in EAGER:
            rows.append(
                {"implementation": name, "bytes": in_a_process(eager_bytes, timing.folder, files, graphs, name)}
            )
        for export in map(Path, timing.exports):
            grown = in_a_process(engine_bytes, export, inputs)
            rows.append({"implementation": implementation(description(export)), "bytes": grown})
    return rows


def in_a_process(measure: Callable[..., int], *given: Any) -> int:
    """A function of a fresh process, which has imported what this one has not."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *given).result()


def eager_bytes(folder: Path, files: Sequence[Path], graphs: Sequence[str], name: str) -> int:
    """By how much memory grows where a run is loaded and embeds."""
    torch.set_num_threads(1)
    before = memory_in_use(CPU)
    subject = Subject(folder)
    return grown_by([subject.eager(graph, files, EAGER[name]) for graph in graphs], before)


def engine_bytes(folder: Path, inputs: Mapping[str, Sequence[np.ndarray]]) -> int:
    """By how much memory grows where an export is opened and embeds."""
    torch.set_num_threads(1)
    described = description(folder)
    if described["engine"] == "onnx":
        require("onnxruntime", "export")
    before = memory_in_use(CPU)
    calls = []
    for graph, arrays in inputs.items():
        call = opened(folder, described, graph, 1)
        calls.append(partial(call, *[torch.from_numpy(array) for array in arrays]))
    return grown_by(calls, before)


def grown_by(calls: Sequence[Callable[[], Any]], before: int) -> int:
    """Bytes beyond `before`, once each has been called a few times."""
    for call in calls:
        for _ in range(CALLS):
            call()
    gc.collect()
    return memory_in_use(CPU) - before


def opened(folder: Path, described: Mapping[str, Any], graph: str, threads: int) -> Callable[..., Any]:
    """A graph of an export, ready to be called.

    Raises:
        UserError: the export does not have it.
    """
    if graph not in described["files"]:
        raise UserError(f"{folder} holds no {graph}: export it without --graphs")
    path = folder / described["files"][graph]["file"]
    if described["engine"] == "onnx":
        return open_onnx(path, threads)
    return ENGINES[described["engine"]].open(path)


def description(folder: Path) -> Mapping[str, Any]:
    """What export.json says.

    Raises:
        UserError: there is none.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserError(f"{folder} holds no export: mm-align export writes one")
    return parse_json(path.read_bytes(), str(folder))


def implementation(described: Mapping[str, Any]) -> str:
    """The engine and the bits of an export."""
    return f"{described['engine']} {described['bits']}"
