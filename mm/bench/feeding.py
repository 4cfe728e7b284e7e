"""How fast batches are made from JPEGs: by one process and by several, beside what decoding and resizing take alone."""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mm.artifacts.environment import commit, hardware
from mm.bench.config import FeedingConfig
from mm.bench.generated import generated_coco
from mm.config import encoders_of, plan_of
from mm.data.coco import CocoFolder
from mm.data.media import decode_image
from mm.data.module import AlignData, loader_workers
from mm.data.sampling import StepSampler
from mm.device import choose_device
from mm.files import write_json
from mm.readers import ImageReader

DECODED = 200
"""Images by which the decoder's rate is told."""
DECODING = "decoding"
RESIZING = "decoding, resizing"
"""What the rate of a core is told by."""


def bench_feeding(config: FeedingConfig) -> None:
    """Measure, print a table, and write it to `config.json`."""
    device = choose_device(config.train.accelerator)
    torch.set_num_threads(1)  # A core is what the rates are of.
    if config.data.root is None:
        root = generated_coco(Path(config.data.cache) / "feeding", "train", config.images, 5 * config.images)
        modalities = ("image", "text")
        data = replace(config.data, root=str(root))
        config = replace(config, data=data, model=replace(config.model, modalities=modalities))
    cores = os.cpu_count() or 1
    workers = loader_workers(config.data.workers, device) or cores
    rates = alone(config)
    rows = [{"what": what, "processes": 1, "images_per_second": round(rate, 1)} for what, rate in rates.items()]
    for processes in dict.fromkeys((0, workers)):
        rate = loader_rate(config, processes, device)
        rows.append({"what": "batches", "processes": processes or 1, "images_per_second": round(rate, 1)})
    limit = min(cores, workers) * rates[RESIZING]
    result = {
        "commit": commit(),
        "hardware": hardware(torch.device("cpu")),
        "batch_size": config.train.batch_size,
        "size": config.image.size,
        "limit_images_per_second": round(limit, 1),
        "rows": rows,
    }
    show(result)
    if config.json:
        write_json(Path(config.json), result)


def alone(config: FeedingConfig) -> dict[str, float]:
    """Images a second of one core that does nothing but decode files that it has in memory, and resize them too."""
    dataset = CocoFolder(config.data.root or "", config.data.train)
    reader = ImageReader(config.image)
    files = [dataset.content("image", index) for index in range(min(DECODED, len(dataset)))]
    found = {}
    for what in (DECODING, RESIZING):
        started = time.perf_counter()
        for content in files:
            pixels = decode_image(content, "an image")
            if what == RESIZING:
                reader.evaluate(pixels)
        found[what] = len(files) / (time.perf_counter() - started)
    return found


def loader_rate(config: FeedingConfig, processes: int, device: torch.device) -> float:
    """Images a second of the loader that a run trains from, once all its processes are at work.

    Args:
        config: of the run.
        processes: that decode; 0 for this one.
        device: of the model.
    """
    data = replace(config.data, workers=processes)
    read = AlignData(data, encoders_of(config), plan_of(config), config.train.precision)
    read.setup()
    read.train_view.keep_nothing()  # What was decoded once would cost nothing.
    first = max(1, 2 * processes)  # So many batches are made beforehand: two by each process.
    size = config.train.batch_size
    sampler = StepSampler(len(read.train), size, first + config.batches, config.seed)
    batches = iter(read.loader(sampler, device))
    _skip(batches, first)
    started = time.perf_counter()
    _skip(batches, config.batches)
    return size * config.batches / (time.perf_counter() - started)


def _skip(batches: Iterator[Any] | Iterable[Any], count: int) -> None:
    for _, _ in zip(range(count), batches, strict=False):
        pass


def show(result: dict[str, Any]) -> None:
    """Print what was measured."""
    title = f"batches of {result['batch_size']}, {result['size']} pixels, on {result['hardware']}"
    table = Table(title=title, title_justify="left")
    for column in ("what", "processes", "images/s", "of the limit"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in result["rows"]:
        share = 100 * row["images_per_second"] / result["limit_images_per_second"]
        table.add_row(row["what"], str(row["processes"]), f"{row['images_per_second']:,.0f}", f"{share:.0f} %")
    Console().print(table)
    print(f"limit: decoding and resizing alone, times cores at work, {result['limit_images_per_second']:,.0f} images/s")
