"""What light models cost and bring: bytes, recalls with paired intervals, latencies interleaved in one process, and the
memory that each way to execute a model holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console

from eval.compare import ComparedRun
from eval.embeddings import Embeddings
from eval.figures import first_protocol
from eval.light import LightRow, light_rows, light_table
from kernels.errors import UserError
from kernels.ranges import check_ranges
from mm.artifacts.environment import commit
from mm.artifacts.results import read_result
from mm.artifacts.run import WEIGHTS
from mm.bench.light_speed import TIMED, Timing, resident_rows, speed_rows
from mm.files import write_json


@dataclass(frozen=True)
class LightConfig:
    """Price and speed of light models."""

    runs: tuple[str, ...]
    """Folders of runs that were evaluated on the same items, or results of eval_coco.py in them; the first is what
    others are compared with."""
    timed: str = ""
    """Folder of the run that is timed; by default that of the first of `runs`."""
    exports: tuple[str, ...] = ()
    """Folders of mm-align export, of that run: these are timed, beside it."""
    graphs: tuple[str, ...] = TIMED
    """What is timed, of what the run does."""
    batches: Annotated[tuple[int, ...], "[1, inf)"] = (1, 8)
    """Images, captions or sequences at a time."""
    threads: Annotated[tuple[int, ...], "[1, inf)"] = (1, 2)
    """Cores of a process."""
    repeats: Annotated[int, "[1, inf)"] = 21
    """Of each; the median counts."""
    speed: bool = True
    """Time the run and its exports; without it, price alone."""
    memory: bool = True
    """Measure what each holds in memory as well, in processes of their own; without speed neither."""
    json: Path | None = None
    """Where to write price, speed and memory."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if unknown := set(self.graphs) - set(TIMED):
            raise UserError(f"graphs: {min(unknown)} is not timed here: choose from {', '.join(TIMED)}")
        if not self.speed and (self.exports or self.timed):
            raise UserError("exports and timed say what is timed: speed=false times nothing")


def bench_light(config: LightConfig) -> None:
    """Print the tables, and write them.

    Raises:
        UserError: a run was not evaluated, on other items, or a folder holds no export.
    """
    price, protocol = priced(config.runs)
    Console().print(light_table(price))
    content: dict[str, Any] = {"commit": commit(), "protocol": protocol}
    content |= {"price": [row.as_json() for row in price], "speed": [], "resident": []}
    if config.speed:
        folder = Path(config.timed or folder_of(config.runs[0]))
        timing = Timing(folder, config.exports, config.graphs, config.batches, config.repeats)
        for threads in config.threads:
            content["speed"] += speed_rows(timing, threads)
        if config.memory:
            content["resident"] = resident_rows(timing)
    for row in content["speed"]:
        print(
            f"{row['case']}, {row['threads']} threads, {row['implementation']}: {row['milliseconds']:.2f} ms,"
            f" {row['per_second']:.0f} a second"
        )
    for row in content["resident"]:
        print(f"{row['implementation']}: {row['bytes'] / 1e6:.1f} MB held")
    if config.json:
        write_json(config.json, content)


def priced(given: Sequence[str]) -> tuple[list[LightRow], str]:
    """What each model takes on disk and loses against the first; what they were evaluated on.

    Args:
        given: folders of runs, or results of eval_coco.py in them.

    Raises:
        UserError: one was evaluated on other items than the first.
    """
    compared = []
    sizes = []
    names = set()
    for each in given:
        path = Path(each)
        result, embeddings = evaluated(path)
        compared.append(ComparedRun.of(named(path, result), result, embeddings))
        sizes.append((folder_of(each) / WEIGHTS).stat().st_size)
        names.add(first_protocol(result).name)
    if len(names) > 1:
        raise UserError(f"runs were evaluated on {' and '.join(sorted(names))}: one table is of one set")
    return light_rows(compared, sizes, [{} for _ in compared]), names.pop()


def folder_of(given: str) -> Path:
    """The folder of a run, or of a result in it."""
    path = Path(given)
    return path.parent if path.suffix == ".json" else path


def evaluated(path: Path) -> tuple[dict[str, Any], Embeddings]:
    """The result of a run's folder, or of a file of eval_coco.py, and the embeddings beside it."""
    if path.suffix != ".json":
        return read_result(path / "result.json"), Embeddings.load(path / "embeddings.npz")
    return read_result(path), Embeddings.load(path.with_suffix(".npz"))


def named(path: Path, result: dict[str, Any]) -> str:
    """A run by its folder, and its arithmetic where that was asked for."""
    name = str(folder_of(str(path)))
    precision = result["config"]["train"]["precision"]
    return name if precision == "auto" else f"{name} in {precision}"
