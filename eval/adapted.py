"""Adapted runs side by side: a row of figures for each, cells for those of one strategy."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev

COLUMNS = ("adapted by", "seeds", "trainable", "GiB", "minutes", "domain", "general")
"""Of a table of rows that are evaluated alike: peak memory, minutes of training, scores before and after."""


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
    """Each run's trainable parameters, peak memory in GiB, minutes, and domain and general scores before and after."""

    def mean(self, measure: str) -> float:
        """Over the seeds."""
        return mean(seed[measure] for seed in self.seeds)

    @property
    def group(self) -> str:
        """What rows that can be compared have in common."""
        return f"{self.judged}, from {self.base}"

    def text(self) -> tuple[str, ...]:
        """Cells under COLUMNS: mean ± standard deviation over the seeds, or — where nothing was measured."""
        return (
            self.strategy,
            str(len(self.seeds)),
            f"{self.mean('trainable'):,.0f}",
            self.cell("peak memory, GiB"),
            self.cell("minutes"),
            self.change("domain"),
            self.change("general"),
        )

    def change(self, part: str) -> str:
        before, after = self.cell(f"{part} before"), self.cell(f"{part} after")
        return f"{before} → {after}" if before != "—" else before

    def cell(self, measure: str) -> str:
        values = [seed[measure] for seed in self.seeds if measure in seed]
        if not values:
            return "—"
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 and stdev(values) >= 0.05 else ""
        return f"{mean(values):.1f}{spread}"


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
        raise ValueError(
            f"{folder} is no adapted run: expected a result.json of scripts/finetune.py or"
            " scripts/continue_pretrain.py in it"
        )
    stamp = next(iter(result["protocol"].values()))
    targets = f" on {' + '.join(found['targets'])}" if found.get("targets") else ""
    measured = {
        "trainable": found["trainable"],
        "peak memory, GiB": found["peak_memory_gib"],
        "minutes": found["minutes"],
    }
    for moment in ("before", "after"):
        measured |= {f"{part} {moment}": value for part, value in found[moment].items()}
    return AdaptedRow(
        found.get("strategy", "continued pre-training") + targets,
        f"{found['selected']['metric']} of {stamp['dataset']}",
        found["run"],
        (measured,),
    )
