"""Every layout on processes of this machine, over gloo: how far from one process, how many bytes, how fast."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from eval.layouts import held
from kernels.errors import UserError
from kernels.ranges import check_ranges
from mm.artifacts.environment import commit, hardware
from mm.bench.parity import SAMPLES, Found, difference, small_config, take_steps
from mm.bench.staged import staged, unstaged
from mm.files import write_json
from mm.parallel.layout import ParallelConfig

TIMEOUT = timedelta(seconds=60)
"""Of a collective: one that a rank does not join ends in an error, not in a wait for ever."""


@dataclass(frozen=True)
class DistConfig:
    """Which layouts are checked."""

    processes: Annotated[tuple[int, ...], "[1, inf)"] = (2, 4)
    """How many processes of this machine."""
    experts: Annotated[tuple[int, ...], "[2, inf)"] = (128, 5)
    """Routed experts of the small run; what they do not divide by is left out."""
    width: Annotated[int, "[8, inf)"] = 64
    """Of its backbone."""
    seconds: Annotated[int, "[1, inf)"] = 240
    """That the layouts of one number of processes may take."""
    json: Path | None = None
    """Where to write what was found."""

    def __post_init__(self) -> None:
        check_ranges(self, "")


INTERLEAVED = " interleaved"
"""Behind a pipeline whose processes have two stages each."""
LAYOUTS = {
    1: ("fsdp1",),
    2: ("pp2", "pp2 interleaved", "fsdp2", "ddp2", "tp2", "fsdp2-ep2"),
    4: ("pp4", "fsdp4", "ddp2-fsdp2", "fsdp2-tp2", "tp4", "fsdp4-ep2", "fsdp4-ep4", "fsdp2-tp2-ep2", "ddp2-fsdp2-ep2"),
}
"""By number of processes."""

Case = tuple[str, int, bool]
"""A layout, routed experts, and whether blocks are recomputed."""


def dist_check(config: DistConfig) -> None:
    """Check all layouts, print a line for each, and store them."""
    rows: list[dict[str, Any]] = []
    known: dict[tuple[bool, int, bool], Found] = {}
    for processes in config.processes:
        cases = cases_of(processes, config.experts)
        for case, found in checked(processes, cases, config.width, config.seconds).items():
            kind = case[0].startswith("pp"), *case[1:]
            if kind not in known:
                known[kind] = alone(case, config.width)
            row = described(case, processes, found, known[kind])
            rows.append(row)
            print(line(row))
    if config.json is not None:
        where = {"hardware": hardware(torch.device("cpu")), "commit": commit(), "width": config.width}
        write_json(config.json, {"kind": "layouts", "rows": rows, **where})


def cases_of(processes: int, experts: Sequence[int]) -> list[Case]:
    """What is checked on so many processes: the last layout with recomputed blocks, too."""
    if processes not in LAYOUTS:
        raise UserError(f"--processes {processes}: there are layouts of {', '.join(map(str, LAYOUTS))}")
    found: list[Case] = []
    for word in LAYOUTS[processes]:
        layout = ParallelConfig.of_word(word.removesuffix(INTERLEAVED))
        found += [(word, number, False) for number in experts if number % (layout.ep * layout.tp) == 0]
    word, number, _ = found[-1]
    return [*found, (word, number, True)]


def checked(processes: int, cases: Sequence[Case], width: int, seconds: float) -> dict[Case, Found]:
    """Take steps of every case on so many processes -> what they found.

    Raises:
        UserError: they did not end in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        on_processes(processes, _take_all, (list(cases), width), Path(folder), seconds)
        parts = []
        for rank in range(processes):
            # This program's own, written just now.
            parts.append(torch.load(Path(folder) / f"{rank}.pt", weights_only=False))
    found: dict[Case, Found] = parts[0]
    for part in parts[1:]:
        for case, of_rank in part.items():
            # Of a pipeline each process has the gradients of its stages; else all have all.
            found[case].values = of_rank.values | found[case].values
    return found


def _take_all(rank: int, cases: list[Case], width: int, folder: Path) -> None:
    found = {}
    for word, experts, checkpoint in cases:
        config = small_config(experts, checkpoint, width)
        layout = ParallelConfig.of_word(word.removesuffix(INTERLEAVED))
        if layout.pp > 1:
            found[word, experts, checkpoint] = staged(config, layout.pp, 2 if word.endswith(INTERLEAVED) else 1)
        else:
            found[word, experts, checkpoint] = take_steps(config, layout)
    torch.save(found, folder / f"{rank}.pt")


def alone(case: Case, width: int) -> Found:
    """What one process finds of the same steps."""
    word, experts, checkpoint = case
    config = small_config(experts, checkpoint, width)
    return unstaged(config) if word.startswith("pp") else take_steps(config, None)


def on_processes(
    processes: int, task: Callable[..., None], arguments: tuple[Any, ...], folder: Path, seconds: float
) -> None:
    """`task(rank, *arguments, folder)` in so many processes that torch.distributed connects over gloo.

    Raises:
        UserError: they did not end in time; all of them are killed.
    """
    started = time.monotonic()
    context = mp.start_processes(
        _connected, (processes, task, arguments, folder), nprocs=processes, join=False, start_method="fork"
    )
    assert context is not None
    try:
        while not context.join(timeout=1):
            if time.monotonic() - started > seconds:
                raise UserError(f"{processes} processes did not end in {seconds:.0f} s: one waits for another")
    finally:
        for process in context.processes:
            process.kill()


def _connected(rank: int, processes: int, task: Callable[..., None], arguments: tuple[Any, ...], folder: Path) -> None:
    torch.set_num_threads(1)
    address = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=processes, timeout=TIMEOUT)
    task(rank, *arguments, folder)
    dist.barrier()
    dist.destroy_process_group()


def described(case: Case, processes: int, found: Found, one: Found) -> dict[str, Any]:
    """A row of the table."""
    word, experts, checkpoint = case
    row = {"layout": word, "processes": processes, "experts": experts, "checkpoint": checkpoint}
    row |= {"difference": asdict(difference(found.values, one.values))}
    row |= {"bytes": found.bytes, "bytes_alone": one.bytes, "seconds": found.seconds, "seconds_alone": one.seconds}
    row |= {"samples_per_second": SAMPLES / found.seconds}
    return row


def line(row: dict[str, Any]) -> str:
    """What is printed of a row."""
    away = row["difference"]
    again = ", recomputed" if row["checkpoint"] else ""
    said = f"{row['layout']:<16}{row['experts']:>4} experts{again}: gradients {away['gradient']:.1e}"
    said += f", values {away['value']:.1e}, weights {away['weight']:.1e}, holds {100 * held(row):.0f} %"
    return f"{said}, {row['seconds']:.2f} s a step" + (f"; alone: {away['unlike']}" if away["unlike"] else "")
