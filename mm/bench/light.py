"""What light models cost and bring: bytes, recalls with paired intervals, and latencies interleaved in one process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from rich.console import Console
from torch import Tensor

from eval.compare import ComparedRun
from eval.embeddings import Embeddings
from eval.light import light_rows, light_table
from kernels.errors import UserError
from kernels.parsing import parse_json
from kernels.ranges import check_ranges
from kernels.threads import torch_threads
from kernels.timing import Contest
from mm.artifacts.environment import commit
from mm.artifacts.results import read_result
from mm.artifacts.run import WEIGHTS, load_run
from mm.bench.generated import written_pool
from mm.device import autocast
from mm.export.command import DESCRIPTION, ENGINES
from mm.files import write_json
from mm.infer.embedder import Embedder

CAPTION = "a small red circle is left of a large blue square"
GRAPHS = ("encode_image", "encode_text")


@dataclass(frozen=True)
class LightConfig:
    """Price and speed of light models."""

    runs: tuple[str, ...]
    """Folders of runs that were evaluated on the same items; the first is what others are compared with."""
    exports: tuple[str, ...] = ()
    """Folders of mm-align export, of the first run: these are timed, beside it."""
    batches: Annotated[tuple[int, ...], "[1, inf)"] = (1, 8)
    """Images or captions at a time."""
    threads: Annotated[tuple[int, ...], "[1, inf)"] = (1, 2)
    """Cores of a process."""
    repeats: Annotated[int, "[1, inf)"] = 21
    """Of each; the median counts."""
    json: Path | None = None
    """Where to write price and speed."""

    def __post_init__(self) -> None:
        check_ranges(self)


def bench_light(config: LightConfig) -> None:
    """Print both tables, and write them.

    Raises:
        UserError: a run was not evaluated, on other items, or a folder holds no export.
    """
    compared = []
    sizes = []
    for folder in map(Path, config.runs):
        result = read_result(folder / "result.json")
        compared.append(ComparedRun.of(str(folder), result, Embeddings.load(folder / "embeddings.npz")))
        sizes.append((folder / WEIGHTS).stat().st_size)
    price = light_rows(compared, sizes, [{} for _ in compared])
    Console().print(light_table(price))
    speed: list[dict[str, Any]] = []
    for threads in config.threads:
        speed += timed(config, threads)
    for row in speed:
        print(
            f"{row['case']}, {row['threads']} threads, {row['implementation']}: {row['milliseconds']:.2f} ms,"
            f" {row['per_second']:.0f} a second"
        )
    if config.json:
        content = {"commit": commit(), "price": [row.as_json() for row in price], "speed": speed}
        write_json(config.json, content)


def timed(config: LightConfig, threads: int) -> list[dict[str, Any]]:
    """Latencies of the first run and its exports, JPEGs of 640×480 decoded and resized included.

    Args:
        config: what is timed, and how often.
        threads: cores of torch and of an engine.
    """
    embedder = Embedder(load_run(config.runs[0]).to(torch.device("cpu")), config.runs[0])
    rows = []
    with torch_threads(threads), TemporaryDirectory() as folder:
        files = written_pool(Path(folder), max(config.batches))
        for graph in GRAPHS:
            for batch in config.batches:
                given: Sequence[Any] = files[:batch] if graph == "encode_image" else [CAPTION] * batch
                contestants = contestants_of(config, embedder, graph, given, threads)
                contest = Contest("light", f"{graph} of {batch}", "mixed", "forward", contestants)
                for row in contest.rows(config.repeats):
                    row["per_second"] = round(1e3 * batch / row["milliseconds"], 1)
                    rows.append(row)
    return rows


def contestants_of(
    config: LightConfig, embedder: Embedder, graph: str, given: Sequence[Any], threads: int
) -> dict[str, Callable[[], Any]]:
    """The run itself in fp32 and bf16, and each of its exports, from the same files or strings to vectors."""
    modality = graph.removeprefix("encode_")

    def inputs() -> Any:
        processor = embedder.processor
        return processor.images(given) if modality == "image" else processor.text(list(given))

    def eager(precision: Any) -> Tensor:
        with torch.inference_mode(), autocast(precision, embedder.run.device):
            return embedder.vectors(modality, inputs())

    found: dict[str, Callable[[], Any]] = {"eager fp32": lambda: eager("fp32"), "eager bf16": lambda: eager("bf16")}
    for folder in map(Path, config.exports):
        described = parse_json(_description(folder).read_bytes(), str(folder))
        call = opened(folder, described, graph, threads)
        found[f"{described['engine']} {described['bits']}"] = partial(exported, call, inputs, modality)
    return found


def exported(call: Callable[..., Any], inputs: Callable[[], Any], modality: str) -> Any:
    """One call of an exported graph, from files or strings on."""
    return call(*tensors(inputs(), modality))


def opened(folder: Path, described: Mapping[str, Any], graph: str, threads: int) -> Callable[..., Any]:
    """A graph of an export, ready to be called.

    Raises:
        UserError: the export does not have it.
    """
    if graph not in described["files"]:
        raise UserError(f"{folder} holds no {graph}: export it without --graphs")
    path = folder / described["files"][graph]["file"]
    if described["engine"] == "onnx":
        from mm.export.onnx_runtime import open_onnx

        return open_onnx(path, threads)
    return ENGINES[described["engine"]].open(path)


def tensors(batch: Any, modality: str) -> list[Tensor]:
    """A batch's inputs and mask of a modality, as graphs take them."""
    found = [batch.inputs[modality].contiguous()]
    if modality in batch.masks:
        found.append(batch.masks[modality].contiguous())
    return found


def _description(folder: Path) -> Path:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserError(f"{folder} holds no export: mm-align export writes one")
    return path
