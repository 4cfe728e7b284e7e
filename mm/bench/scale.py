"""Training and evaluation at MS-COCO's size: how long until the first step, in how much memory, how long to resume."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.console import Console
from rich.table import Table

from kernels.ranges import check_ranges
from mm.artifacts.environment import commit, hardware
from mm.artifacts.run import build_run, save_run
from mm.artifacts.settings import read_text, read_yaml, settings_from_dict
from mm.bench.config import CONFIGS
from mm.bench.generated import generated_coco, generated_shards
from mm.config import AlignConfig, encoders_of, plan_of
from mm.data.module import AlignData
from mm.files import write_json

SETTINGS = CONFIGS / "soak.yaml"
"""Of the model: small, so that what is measured is the data."""
OPTIONS = ("--model.modalities", "[image,text]", "--train.checkpoint_every", "1", "--train.steps", "1000")
"""A checkpoint is the sign that a step has ended."""
LAYOUTS = ("folder", "shards")
LIMIT_SECONDS = 600
"""A first step that takes longer is an error."""
EVERY = 0.25
"""Seconds between two looks at a process."""
GIBIBYTE = 2**30


@dataclass(frozen=True)
class Scripts:
    """Those that are measured."""

    train: Path
    evaluate: Path


@dataclass(frozen=True)
class ScaleConfig:
    """A generated set, and what it is compared with."""

    images: Annotated[int, "[1, inf)"] = 123_287
    """Of the training split: hard links of 200 JPEGs. COCO has so many."""
    captions: Annotated[int, "[1, inf)"] = 616_767
    """Of all of them together."""
    compared: Annotated[int, "[1, inf)"] = 1000
    """Images of the set that memory is compared with."""
    evaluated: Annotated[list[int], "[1, inf)"] = field(default_factory=lambda: [5000, 25_010])
    """Images and captions of the evaluated split."""
    shards: bool = True
    """Whether the set is also written and read as shards, which takes gigabytes."""
    workers: Annotated[int, "[0, inf)"] = 2
    """Processes that decode."""
    root: Path = Path("data/scale")
    """Folder of the sets, which are made once."""
    json: Path | None = None
    """Where to write what was measured."""

    def __post_init__(self) -> None:
        check_ranges(self, "")


def bench_scale(config: ScaleConfig, scripts: Scripts) -> dict[str, Any]:
    """Measure, print a table, and write it to `config.json`."""
    result: dict[str, Any] = {
        "commit": commit(),
        "hardware": hardware(torch.device("cpu")),
        "images": config.images,
        "captions": config.captions,
        "rows": [],
    }
    layouts = LAYOUTS if config.shards else LAYOUTS[:1]
    for layout in layouts:
        for images in (config.compared, config.images):
            row = measured_training(config, scripts, layout, images)
            result["rows"].append(row)
            _written(config, result)
    result["evaluation"] = measured_evaluation(config, scripts)
    _written(config, result)
    show(result)
    return result


def _written(config: ScaleConfig, result: dict[str, Any]) -> None:
    if config.json:
        write_json(config.json, result)


def made_set(config: ScaleConfig, layout: str, images: int) -> tuple[Path, float]:
    """Where a set of so many images lies, and the seconds that it took to make now."""
    started = time.perf_counter()
    texts = config.captions * images // config.images
    root = generated_coco(config.root / f"coco-{images}", "train", images, texts)
    generated_coco(root, "val", min(images, 100), 5 * min(images, 100), first_id=10**7)
    if layout == "shards":
        folder = config.root / f"shards-{images}"
        for split in ("train", "val"):
            generated_shards(folder, root, split)
        root = folder
    return root, round(time.perf_counter() - started, 1)


def measured_training(config: ScaleConfig, scripts: Scripts, layout: str, images: int) -> dict[str, Any]:
    """A run until its first step, killed, and resumed until the next: seconds, and the memory of all its processes."""
    root, seconds_of_set = made_set(config, layout, images)
    runs = config.root / "runs"
    name = f"{layout}-{images}"
    shutil.rmtree(runs / name, ignore_errors=True)
    command = [sys.executable, str(scripts.train), "--config", str(SETTINGS), "--name", name, "--runs", str(runs)]
    command += ["--data.root", str(root), "--data.cache", str(config.root / "cache")]
    command += ["--data.workers", str(config.workers), *OPTIONS]
    seconds, memory = until_a_step(command, runs / name)
    resumed, _ = until_a_step([*command, "--resume", "true"], runs / name)
    return {
        "layout": layout,
        "images": images,
        "seconds_to_first_step": seconds,
        "memory_bytes": memory,
        "seconds_to_resume": resumed,
        "seconds_to_make_the_set": seconds_of_set,
    }


def until_a_step(command: list[str], run: Path) -> tuple[float, int]:
    """Start a run, wait until a step more is in its checkpoints, and kill it.

    Returns:
        seconds from the command on, and the largest memory of all its processes.

    Raises:
        RuntimeError: it ends by itself, or takes longer than LIMIT_SECONDS.
    """
    before = newest_step(run)
    started = time.perf_counter()
    memory = 0
    with in_a_group(command) as process:
        while newest_step(run) <= before:
            if process.poll() is not None or time.perf_counter() - started > LIMIT_SECONDS:
                raise RuntimeError(f"no step in {LIMIT_SECONDS} s, or the run ended by itself: {' '.join(command)}")
            memory = max(memory, memory_of(process.pid))
            time.sleep(EVERY)
        return round(time.perf_counter() - started, 1), memory


def newest_step(run: Path) -> int:
    """Of the checkpoints of a run, as their names say; -1 where there are none."""
    steps = [-1]
    for path in (run / "checkpoints").glob("*step=*.ckpt"):
        steps.append(int(path.stem.rpartition("=")[2]))
    return max(steps)


@contextmanager
def in_a_group(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed in the end, with all that it started."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def memory_of(group: int) -> int:
    """Bytes of all processes of a group, what they share counted once (Linux's proportional set size)."""
    total = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if os.getpgid(int(folder.name)) == group:
                total += _proportional((folder / "smaps_rollup").read_text())
        except (ProcessLookupError, FileNotFoundError):
            continue  # It ended meanwhile.
    return total


def _proportional(rollup: str) -> int:
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    return 0


def measured_evaluation(config: ScaleConfig, scripts: Scripts) -> dict[str, Any]:
    """eval_coco of an untrained run on the evaluated split, from the command to the end, twice: the second time its
    embeddings are kept."""
    images, texts = config.evaluated
    root = generated_coco(config.root / f"evaluated-{images}", "val", images, texts)
    generated_coco(root, "train", 32, 160, first_id=10**7)
    cache = config.root / f"cache-{images}"
    shutil.rmtree(cache, ignore_errors=True)
    run = untrained_run(root, cache, config.root / "runs" / "untrained")
    command = [sys.executable, str(scripts.evaluate), "--run", str(run), "--data.split", "val"]
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(round(time.perf_counter() - started, 1))
    return {"images": images, "captions": texts, "seconds": seconds[0], "seconds_again": seconds[1]}


def untrained_run(root: Path, cache: Path, folder: Path) -> Path:
    """A run of SETTINGS on a set, as it begins."""
    source = str(SETTINGS)
    config = settings_from_dict(AlignConfig, read_yaml(read_text(SETTINGS), source), source)
    model = replace(config.model, modalities=("image", "text"))
    config = replace(
        config, model=model, data=replace(config.data, root=str(root.resolve()), cache=str(cache.resolve()))
    )
    data = AlignData(config.data, encoders_of(config), plan_of(config), config.train.precision)
    data.setup()
    save_run(build_run(config, data.vocabulary), folder)
    return folder


def show(result: dict[str, Any]) -> None:
    """Print what was measured."""
    table = Table(title=f"a set of COCO's size on {result['hardware']}", title_justify="left")
    for column in ("layout", "images", "s to the first step", "GiB", "s to resume"):
        table.add_column(column, justify="left" if column == "layout" else "right")
    for row in result["rows"]:
        seconds = f"{row['seconds_to_first_step']:.0f}"
        memory = f"{row['memory_bytes'] / GIBIBYTE:.2f}"
        table.add_row(row["layout"], f"{row['images']:,}", seconds, memory, f"{row['seconds_to_resume']:.0f}")
    Console().print(table)
    found = result["evaluation"]
    sizes = f"{found['images']:,} images and {found['captions']:,} captions"
    print(f"{sizes} evaluated in {found['seconds']:.0f} s, again in {found['seconds_again']:.0f} s")
