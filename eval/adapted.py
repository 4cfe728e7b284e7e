"""Adapted runs side by side: a row of figures for each, cells for those of one strategy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from eval.figures import first_protocol
from kernels.errors import UserError

COLUMNS = ("adapted by", "seeds", "trainable", "GiB", "minutes", "domain", "general")
"""Of a table of rows that are evaluated alike: peak memory, minutes of training, scores before and after."""


@dataclass(frozen=True)
class AdaptedRow:
    """What runs that differ in nothing but their seeds measured."""

    strategy: str
    """With what it adapts: lora on q_proj + v_proj."""
    score: str
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
        return f"{self.score}, from {self.base}"

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
        """Of `domain` or `general`, before → after."""
        before = self.cell(f"{part} before")
        after = self.cell(f"{part} after")
        return f"{before} → {after}" if before != "—" else before

    def cell(self, measure: str) -> str:
        """One decimal; a deviation that rounds to zero is not shown."""
        values = [seed[measure] for seed in self.seeds if measure in seed]
        if not values:
            return "—"
        deviation = stdev(values) if len(values) > 1 else 0.0
        spread = f" ± {deviation:.1f}" if deviation >= 0.05 else ""
        return f"{mean(values):.1f}{spread}"


def adapted_rows(results: Mapping[str, Mapping[str, Any]]) -> list[AdaptedRow]:
    """Rows of runs that scripts/finetune.py or scripts/continue_pretrain.py wrote, those alike in one.

    Args:
        results: folder -> its result.json.

    Raises:
        ValueError: naming a run that is not adapted.
    """
    alike: dict[AdaptedRow, list[dict[str, float]]] = {}
    for folder, result in results.items():
        row = _adapted_row(folder, result)
        alike.setdefault(row, []).extend(row.seeds)
    return [replace(row, seeds=tuple(seeds)) for row, seeds in alike.items()]


def stored_rows(table: Mapping[str, Any]) -> list[AdaptedRow]:
    """What scripts/bench_adapt.py stored."""
    rows = []
    for row in table["rows"]:
        rows.append(AdaptedRow(row["strategy"], row["score"], row["base"], tuple(row["seeds"])))
    return rows


def adapted_table(rows: Sequence[AdaptedRow], group: str) -> Table:
    """For a terminal: the rows of one group."""
    table = Table(title=group, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == COLUMNS[0] else "right")
    for row in rows:
        if row.group == group:
            table.add_row(*row.text())
    return table


def _adapted_row(folder: str, result: Mapping[str, Any]) -> AdaptedRow:
    """A run's row, with itself as its one seed."""
    found = result.get("adaptation") or result.get("continued")
    if not found:
        raise UserError(
            f"{folder} is no adapted run: expected a result.json of scripts/finetune.py or"
            " scripts/continue_pretrain.py in it"
        )
    strategy = found.get("strategy", "continued pre-training")
    if found.get("targets"):
        strategy += f" on {' + '.join(found['targets'])}"
    measured = {
        "trainable": found["trainable"],
        "peak memory, GiB": found["peak_memory_gib"],
        "minutes": found["minutes"],
    }
    for moment in ("before", "after"):
        for part, value in found[moment].items():
            measured[f"{part} {moment}"] = value
    score = f"{found['selected']['metric']} of {first_protocol(result).name}"
    return AdaptedRow(strategy, score, found["run"], (measured,))
