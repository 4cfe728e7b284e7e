"""How fast an index is searched and built, beside what memory, decoding and the model allow."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from kernels.ranges import check_ranges
from kernels.timing import Contest, surroundings
from mm.artifacts.run import build_run
from mm.config import AlignConfig
from mm.files import write_json
from mm.infer import base
from mm.infer.ahead import read_ahead
from mm.infer.base import BaseEmbedder
from mm.infer.embedder import Embedder
from mm.infer.exact import nearest
from mm.infer.index import Index
from mm.infer.loading import device_of, load

QUERIES = 16
"""Of a search for several at once."""


@dataclass(frozen=True)
class IndexConfig:
    """What is searched and built."""

    sizes: Annotated[tuple[int, ...], "[1, inf)"] = (1_000, 100_000, 1_000_000)
    """Vectors that are searched."""
    width: Annotated[int, "[1, inf)"] = 512
    """Of each."""
    k: Annotated[int, "[1, inf)"] = 10
    """Vectors that are found."""
    repeats: Annotated[int, "[1, inf)"] = 7
    """Searches that are timed."""
    images: Annotated[int, "[0, inf)"] = 512
    """Generated images that an index is built of; 0 for none."""
    side: Annotated[int, "[1, inf)"] = 256
    """Pixels per side of each."""
    model: str | None = None
    """By which it is built, see mm.load; without one, the default run, untrained."""
    device: str = "auto"
    """Of vectors and model."""
    seed: Annotated[int, "[0, inf)"] = 0
    """Of vectors and images."""
    json: str | None = None
    """Where to write what was measured."""

    def __post_init__(self) -> None:
        check_ranges(self)


def bench_index(config: IndexConfig) -> None:
    """Measure, print two tables, and write them to `config.json`."""
    torch.manual_seed(config.seed)
    device = device_of(config.device)
    result: dict[str, Any] = surroundings(device)
    result["search"] = [row for size in config.sizes for row in search_rows(config, size, device)]
    console = Console()
    console.print(search_table(result["search"], config))
    if config.images:
        result["build"] = build_rates(config)
        console.print(build_table(result["build"]))
    if config.json:
        write_json(Path(config.json), result)


def search_rows(config: IndexConfig, size: int, device: torch.device) -> list[dict[str, Any]]:
    """Searches of random unit vectors, interleaved with reading them once, which is the limit of one query.

    Args:
        config: of the searches.
        size: N vectors.
        device: that they lie on.

    Returns:
        a row for one query and a row for `QUERIES`, milliseconds of each search.
    """
    vectors = normalize(torch.randn(size, config.width, device=device), dim=1)
    queries = normalize(torch.randn(QUERIES, config.width, device=device), dim=1)
    runs: dict[str, Callable[[], Any]] = {
        "read once": vectors.sum,
        "1": lambda: nearest(vectors, queries[:1], config.k),
        str(QUERIES): lambda: nearest(vectors, queries, config.k),
    }
    contest = Contest("search", f"{size} x {config.width}", "float32", "forward", runs)
    read, *searches = contest.rows(config.repeats)
    bandwidth = vectors.nbytes / read["milliseconds"] / 1e6
    rows = []
    for row in searches:
        rows.append(
            {
                "vectors": size,
                "queries": int(row["implementation"]),
                "milliseconds": row["milliseconds"],
                "limit_milliseconds": read["milliseconds"],
                "limit_over_time": round(read["milliseconds"] / row["milliseconds"], 3),
                "gigabytes_a_second_read": bandwidth,
            }
        )
    return rows


def build_rates(config: IndexConfig) -> dict[str, Any]:
    """Images a second of building an index, of its two parts alone, and of building it again with nothing changed.

    The limit is all the reading and then all of the model's work, where both are the processor's; the slower of the two
    where the model is on a GPU.
    """
    model = built_by(config)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = write_images(root, config.images, config.side)
        index = Index.build(model, root)  # also the warm-up
        reading, batches = timed(lambda: read_all(model, paths))
        embedding, _ = timed(lambda: embed_all(model, batches))
        _ = model.digest  # computed once in the life of a model, and asked for by what follows
        building, _ = timed(lambda: Index.build(model, root))
        again, _ = timed(lambda: Index.build(model, root, index))
    shared = device_of(config.device).type == "cpu"
    limit = reading + embedding if shared else max(reading, embedding)
    seconds = {"build": building, "limit": limit, "reading": reading, "model": embedding, "again": again}
    rates = {name: round(config.images / taken, 1) for name, taken in seconds.items()}
    facts = {"model": model.name, "images": config.images, "side": config.side}
    return facts | {"images_a_second": rates, "limit_over_time": round(limit / building, 3)}


def read_all(model: BaseEmbedder, paths: list[Path]) -> list[Any]:
    """Images read as a build reads them -> batches as the model takes them."""
    batches = []
    for begun in read_ahead(paths, partial(model.read, "image"), base.ROWS):
        batches.append(model.stack("image", [future.result() for future in begun]))
    return batches


def embed_all(model: BaseEmbedder, batches: list[Any]) -> list[Tensor]:
    """Batches of images -> their vectors, on the CPU."""
    with torch.inference_mode():
        return [model.vectors("image", batch).cpu() for batch in batches]


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call took, and what it gave."""
    started = time.perf_counter()
    given = run()
    return time.perf_counter() - started, given


def write_images(folder: Path, count: int, side: int) -> list[Path]:
    """Write JPEGs of smooth noise, as large as photographs of that size are.

    Returns:
        their paths.
    """
    paths = []
    for number in range(count):
        coarse = torch.randint(0, 256, (side // 8, side // 8, 3), dtype=torch.uint8)
        image = Image.fromarray(coarse.numpy()).resize((side, side), Image.Resampling.BICUBIC)
        paths.append(folder / f"{number:06}.jpg")
        image.save(paths[-1], quality=90)
    return paths


def built_by(config: IndexConfig) -> BaseEmbedder:
    """The model that is asked for, or the default run, untrained."""
    if config.model is not None:
        return load(config.model, config.device)
    run = build_run(AlignConfig(), torch.arange(1000))
    run.model.to(device_of(config.device))
    return Embedder(run, "the default run, untrained")


def search_table(rows: list[dict[str, Any]], config: IndexConfig) -> Table:
    """Search by size."""
    title = f"the best {config.k} of N vectors of {config.width} float32; limit: reading them once"
    table = Table(title=title, title_justify="left", min_width=72)
    for column in ("N", "queries", "ms", "limit ms", "of the limit", "GB/s read"):
        table.add_column(column, justify="right")
    for row in rows:
        percent = f"{100 * row['limit_over_time']:.0f} %"
        limit = f"{row['limit_milliseconds']:.2f}"
        table.add_row(
            f"{row['vectors']:,}",
            str(row["queries"]),
            f"{row['milliseconds']:.2f}",
            limit,
            percent,
            f"{row['gigabytes_a_second_read']:.1f}",
        )
    return table


def build_table(built: dict[str, Any]) -> Table:
    """Images a second, by part."""
    title = f"an index of {built['images']:,} JPEGs of {built['side']} pixels, by {built['model']}"
    table = Table(title=title, title_justify="left", min_width=72)
    table.add_column("what")
    table.add_column("images/s", justify="right")
    for name, rate in built["images_a_second"].items():
        table.add_row(name, f"{rate:,.1f}")
    return table
