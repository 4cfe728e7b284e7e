"""Every layout on processes of this machine, over gloo: how far from one process, how many bytes, how fast."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch

from eval.layouts import held, kills_said
from kernels.errors import UserError
from kernels.ranges import check_ranges
from mm.artifacts.environment import commit, hardware
from mm.bench import checkpoints, kills
from mm.bench.parity import SAMPLES, Found, difference, small_config, take_steps
from mm.bench.processes import on_processes
from mm.config import AlignConfig
from mm.files import write_json
from mm.parallel.cost import MACHINES, Rates, estimate
from mm.parallel.layout import ParallelConfig
from mm.parallel.plan import of_rank, workload

Part = Literal["layouts", "checkpoints", "kills"]


@dataclass(frozen=True)
class DistConfig:
    """What is checked of runs that processes divide."""

    parts: tuple[Part, ...] = get_args(Part)
    """layouts: each beside one process. checkpoints: of each layout, read under every other. kills: of one rank, and
    what is left."""
    processes: Annotated[tuple[int, ...], "[1, inf)"] = (2, 4)
    """How many processes of this machine."""
    experts: Annotated[tuple[int, ...], "[2, inf)"] = (128, 5)
    """Routed experts of the small run; what they do not divide by is left out."""
    width: Annotated[int, "[8, inf)"] = 64
    """Of its backbone."""
    kills: Annotated[int, "[1, inf)"] = 10
    """How many runs lose a rank."""
    seconds: Annotated[int, "[1, inf)"] = 400
    """That the layouts of one number of processes may take."""
    json: Path | None = None
    """Where to write what was found."""

    def __post_init__(self) -> None:
        check_ranges(self, "")


LAYOUTS = {
    1: ("fsdp1",),
    2: ("pp2", "pp2-vpp2", "fsdp2", "ddp2", "tp2", "fsdp2-ep2"),
    4: (
        "pp4",
        "ddp2-pp2",
        "tp2-pp2",
        "fsdp2-pp2",
        "fsdp2-ep2-pp2",
        "fsdp4",
        "ddp2-fsdp2",
        "fsdp2-tp2",
        "tp4",
        "fsdp4-ep2",
        "fsdp4-ep4",
        "fsdp2-tp2-ep2",
        "ddp2-fsdp2-ep2",
    ),
}
"""By number of processes."""

Case = tuple[str, int, bool]
"""A layout, routed experts, and whether blocks are recomputed."""


def dist_check(config: DistConfig) -> None:
    """Check what is asked for, print a line for each, and store it.

    Raises:
        UserError: processes did not end in time, a checkpoint does not come back, or a killed run left none.
    """
    found: dict[str, Any] = {"kind": "layouts"}
    if "layouts" in config.parts:
        found["rows"] = compared(config)
    read: list[checkpoints.Reading] = []
    if "checkpoints" in config.parts:
        words = [word for word in checkpoints.MATRIX if checkpoints.processes_of(word) in (1, *config.processes)]
        read = checkpoints.read_everywhere(words, config.seconds)
        print(checkpoints.described(read))
        found["checkpoints"] = [asdict(each) for each in read]
    lost: list[kills.Killed] = []
    if "kills" in config.parts:
        lost = kills.killed_runs(config.kills)
        found["kills"] = [asdict(each) for each in lost]
        print(kills_said(found))
    if config.json is not None:
        where = {"hardware": hardware(torch.device("cpu")), "commit": commit(), "width": config.width}
        write_json(config.json, {**found, **where})
    if any(each.differ for each in read) or not all(each.exact for each in lost):
        raise UserError("a checkpoint is not what was kept: see above")


def compared(config: DistConfig) -> list[dict[str, Any]]:
    """A row for every layout beside one process."""
    rows: list[dict[str, Any]] = []
    known: dict[tuple[bool, int, bool], Found] = {}
    for processes in config.processes:
        cases = cases_of(processes, config.experts)
        for case, found in checked(processes, cases, config.width, config.seconds).items():
            kind = is_pipeline(case), *case[1:]
            if kind not in known:
                known[kind] = alone(case, config.width)
            row = described(case, processes, found, known[kind])
            row["predicted"] = predicted(case, config.width)
            rows.append(row)
            print(line(row))
    return rows


def predicted(case: Case, width: int) -> dict[str, float]:
    """Bytes of a process by role, as `mm.parallel.plan` predicts them."""
    config = config_of(case, width)
    layout = ParallelConfig.of_word(case[0])
    return estimate(of_rank(workload(config), config, layout), layout, MACHINES["h100"], Rates()).bytes


def cases_of(processes: int, experts: Sequence[int]) -> list[Case]:
    """What is checked on so many processes: the last layout with recomputed blocks, too."""
    if processes not in LAYOUTS:
        raise UserError(f"--processes {processes}: there are layouts of {', '.join(map(str, LAYOUTS))}")
    found: list[Case] = []
    for word in LAYOUTS[processes]:
        layout = ParallelConfig.of_word(word)
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
        for case, own in part.items():
            # Of a pipeline each process has the gradients of its stages; else all have all.
            found[case].values = own.values | found[case].values
    return found


def _take_all(rank: int, cases: list[Case], width: int, folder: Path) -> None:
    found = {}
    for case in cases:
        found[case] = take_steps(config_of(case, width), ParallelConfig.of_word(case[0]))
    torch.save(found, folder / f"{rank}.pt")


def alone(case: Case, width: int) -> Found:
    """What one process finds of the same steps."""
    return take_steps(config_of(case, width), None)


def config_of(case: Case, width: int) -> AlignConfig:
    """The small run of a case."""
    _, experts, checkpoint = case
    return small_config(experts, checkpoint, width, is_pipeline(case))


def is_pipeline(case: Case) -> bool:
    """Whether its processes divide blocks."""
    return ParallelConfig.of_word(case[0]).pp > 1


def described(case: Case, processes: int, found: Found, one: Found) -> dict[str, Any]:
    """A row of the table."""
    word, experts, checkpoint = case
    row = {"layout": word, "processes": processes, "experts": experts, "checkpoint": checkpoint}
    row |= {"difference": asdict(difference(found.values, one.values))}
    row |= {"bytes": found.bytes, "bytes_alone": one.bytes, "seconds": found.seconds, "seconds_alone": one.seconds}
    row |= {"activations": found.activations, "activations_alone": one.activations}
    row |= {"samples_per_second": SAMPLES / found.seconds}
    return row


def line(row: dict[str, Any]) -> str:
    """What is printed of a row."""
    away = row["difference"]
    again = ", recomputed" if row["checkpoint"] else ""
    said = f"{row['layout']:<16}{row['experts']:>4} experts{again}: gradients {away['gradient']:.1e}"
    said += f", values {away['value']:.1e}, weights {away['weight']:.1e}, holds {100 * held(row):.0f} %"
    return f"{said}, {row['seconds']:.2f} s a step" + (f"; alone: {away['unlike']}" if away["unlike"] else "")
