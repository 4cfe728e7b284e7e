"""Steps of equal time: what a step of each variant of a study costs over its run, all interleaved in one process."""

import copy
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alignment import ScheduleConfig, has_stage
from eval.studies import ROOT
from kernels.errors import UserError
from kernels.timing import Contest, Run
from mm.artifacts.settings import by_group, merged, read_text, read_yaml, settings_from_dict
from mm.bench.config import StepConfig
from mm.bench.step import Standing, StandingTask, own_step, standing
from mm.device import autocast, choose_device, precision_name
from mm.files import write_json
from mm.study import PlannedRun, read_study
from mm.train.memory import keep_freed_memory


class WorkContest(Contest):
    """A contest in the processor's seconds that a step takes on a CPU: what else runs on the machine does not count."""

    def seconds(self, run: Run) -> float:
        if self.device.type != "cpu":
            return super().seconds(run)
        start = time.process_time()
        run()
        taken = time.process_time() - start
        self.clear()
        return taken


@dataclass(frozen=True)
class Part:
    """A part of a run, from progress `start` on, in which every step is of one kind."""

    start: float
    stop: float

    @property
    def name(self) -> str:
        """As a row of the contest ends."""
        return f"{self.start:g}-{self.stop:g}"


def parts(schedule: ScheduleConfig) -> list[Part]:
    """The parts of a run, between the stages that its schedule has."""
    seams = {0.0, 1.0}
    for number, start in ((2, schedule.stage2), (3, schedule.stage3)):
        if has_stage(schedule, number):
            seams.add(start)
    edges = sorted(seams)
    return [Part(start, stop) for start, stop in itertools.pairwise(edges)]


def settings_of(run: PlannedRun, study: Path) -> StepConfig:
    """What a run is trained with: its own settings, on top of its file's."""
    source = f"{study}, {run.variant}"
    values: dict[str, Any] = {}
    if run.config:
        path = ROOT / run.config
        values = by_group(read_yaml(read_text(path), str(path)), StepConfig, str(path))
    values = merged(values, by_group(run.settings, StepConfig, source), StepConfig)
    return settings_from_dict(StepConfig, values, source)


def bench_equal_time(
    study: Path,
    reference: str,
    repeats: int = 7,
    settings: dict[str, Any] | None = None,
    json: Path | None = None,
) -> None:
    """Time every variant, print a row of each, and write them to `json`.

    Args:
        study: YAML file of a study.
        reference: the variant whose time the others are given.
        repeats: steps of each part of each variant that are timed.
        settings: added to those of every variant.
        json: where to write what was measured.

    Raises:
        UserError: the study has no such variant, or its variants differ in more than schedule and losses.
    """
    variants = {run.variant: settings_of(run, study) for run in read_study(study, [0], settings)}
    if reference not in variants:
        raise UserError(f"reference={reference}: {study} has {', '.join(variants)}")
    keep_freed_memory()
    device = choose_device(variants[reference].train.accelerator)
    made = standing(next(iter(variants.values())), device)
    steps = dict(interleaved(variants, made))
    own = variants[reference]
    dtype = precision_name(own.train.precision, device)
    case = f"{study.stem}, batch {own.train.batch_size}"
    timed = WorkContest("training_step", case, dtype, "forward_backward", steps, device=device).rows(repeats)
    rows = found(variants, reference, timed, made.milliseconds_of_data)
    show(rows, reference)
    if json:
        data = {"milliseconds_of_data": made.milliseconds_of_data}
        write_json(json, {"reference": reference, "rows": rows, "parts": timed, **data})


def interleaved(settings: dict[str, StepConfig], made: Standing) -> Iterator[tuple[str, Run]]:
    """A step of each part of each variant, by `variant part`: from the same weights, on the same batches.

    Args:
        settings: of each variant.
        made: the first one's run, untrained, and its batches.

    Raises:
        UserError: a variant differs from the first one in more than its schedule, its losses and how long it trains.
    """
    (first, config), *_ = settings.items()
    for variant, own in settings.items():
        if modelled(own) != modelled(config):
            raise UserError(f"{variant} reads other batches than {first}, or has another model: time it alone")
        run = replace(copy.deepcopy(made.task.run), config=own)
        precision = autocast(own.train.precision, made.device)
        for part in parts(own.schedule):
            task = StandingTask(run, (part.start + part.stop) / 2)
            yield f"{variant} {part.name}", own_step(task, made.batches, precision)


def modelled(config: StepConfig) -> StepConfig:
    """The same settings, of which those that change neither batches nor model are the default's."""
    plain = StepConfig()
    train = replace(plain.train, batch_size=config.train.batch_size, precision=config.train.precision)
    return replace(config, train=train, schedule=plain.schedule, loss=plain.loss, optim=plain.optim)


def found(
    settings: dict[str, StepConfig], reference: str, timed: Sequence[dict[str, Any]], data: float
) -> list[dict[str, Any]]:
    """Of each variant the mean milliseconds of a step over its run, and the steps that take the reference's time.

    The fastest repeat counts: whatever else a machine does only adds to it.

    Args:
        settings: of each variant.
        reference: the variant whose time the others are given.
        timed: rows of the contest.
        data: milliseconds that making a batch takes, on the cores that take the steps.
    """
    of_part = {row["implementation"]: row["fastest_milliseconds"] for row in timed}
    milliseconds = {}
    for variant, config in settings.items():
        shares = [(part.stop - part.start) * of_part[f"{variant} {part.name}"] for part in parts(config.schedule)]
        milliseconds[variant] = data + sum(shares)
    budget = settings[reference].train.steps * milliseconds[reference]
    return [
        {"variant": variant, "milliseconds": round(mean, 1), "steps": round(budget / mean)}
        for variant, mean in milliseconds.items()
    ]


def show(rows: Sequence[dict[str, Any]], reference: str) -> None:
    """Print the rows."""
    table = Table(title=f"steps that take the time of {reference}", title_justify="left")
    table.add_column("variant")
    for name in ("ms a step", "steps"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row["variant"], f"{row['milliseconds']:,.0f}", str(row["steps"]))
    Console().print(table)
