"""Adapted runs side by side: a row of figures for each, cells for those of one strategy."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev

MEASURES = ("trainable", "peak memory, GiB", "minutes", "domain before", "domain after", "general before",
            "general after")


@dataclass(frozen=True)
class AdaptedRow:
    """What runs that differ in nothing but their seeds measured."""

    strategy: str
    """With what it adapts: lora on q_proj + v_proj."""
    judged: str
    """The metric, and the set: RSUM of molecules/val."""
    base: str
    """The run that was adapted."""
    seeds: tuple[dict[str, float], ...] = field(default=(), compare=False)
    """MEASURES of each run."""

    def mean(self, measure: str) -> float:
        """Over the seeds."""
        return mean(seed[measure] for seed in self.seeds)

    def text(self) -> tuple[str, ...]:
        """Cells of a table, under COLUMNS."""
        return f"{self.strategy}, {self.judged}, from {self.base}", str(len(self.seeds)), *cells(self.seeds)


COLUMNS = ("adapted by, judged by, base", "seeds", *MEASURES)


def read_rows(folders: Sequence[Path]) -> list[AdaptedRow]:
    """Runs that scripts/finetune.py or scripts/continue_pretrain.py wrote, those alike in one row. Raises ValueError
    where one is none."""
    alike: dict[AdaptedRow, list[AdaptedRow]] = {}
    for row in map(read_adapted, folders):
        alike.setdefault(row, []).append(row)
    return [replace(row, seeds=tuple(seed for one in found for seed in one.seeds)) for row, found in alike.items()]


def stored_rows(table: dict) -> list[AdaptedRow]:
    """What scripts/bench_adapt.py stored."""
    return [AdaptedRow(**{**row, "seeds": tuple(row["seeds"])}) for row in table["rows"]]


def read_adapted(folder: Path) -> AdaptedRow:
    """A run's row. Raises ValueError where it is no adapted run."""
    path = folder / "result.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    found = result.get("adaptation") or result.get("continued")
    if not found:
        raise ValueError(f"{folder} is no adapted run: expected a result.json of scripts/finetune.py or"
                         " scripts/continue_pretrain.py in it")
    stamp = next(iter(result["protocol"].values()))
    targets = f" on {' + '.join(found['targets'])}" if found.get("targets") else ""
    measured = {"trainable": found["trainable"], "peak memory, GiB": found["peak_memory_gib"],
                "minutes": found["minutes"]}
    for moment in ("before", "after"):
        measured |= {f"{part} {moment}": value for part, value in found[moment].items()}
    return AdaptedRow(found.get("strategy", "continued pre-training") + targets,
                      f"{found['selected']['metric']} of {stamp['dataset']}", found["run"], (measured,))


def cells(found: Sequence[dict[str, float]]) -> list[str]:
    """MEASURES of runs that differ in their seeds: mean ± standard deviation, or — where it was not measured."""
    return [_cell(name, [row[name] for row in found if name in row]) for name in MEASURES]


def _cell(name: str, values: list[float]) -> str:
    if not values:
        return "—"
    if name == "trainable":
        return f"{mean(values):,.0f}"
    digits = 2 if name.startswith("peak") else 1
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"
