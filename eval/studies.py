"""A study read back: the tidy table that scripts/ablate.py writes, paired differences over seeds, and their image."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from eval.plots import COLOURS
from kernels.errors import MissingError, UserError

ROOT = Path(__file__).parents[1]
STORED = ROOT / "eval" / "results" / "ablations"
COLUMNS = ["study", "variant", "seed", "measure", "value"]
PANEL_WIDTH = 3.6  # inches
SeedValues = dict[int, float]


@dataclass(frozen=True)
class Difference:
    """Of two variants in one measure, seed by seed."""

    mean: float
    low: float
    """Of the 95 % interval: Student's t over the seeds, none (infinite) of one seed."""
    high: float
    seeds: int

    @classmethod
    def of(cls, values: np.ndarray) -> "Difference":
        """The interval of paired differences.

        Args:
            values: (S,) differences, one a seed.
        """
        count = len(values)
        mean = float(values.mean())
        if count == 1:
            return cls(mean, float("-inf"), float("inf"), 1)
        quantile = student_t.ppf(0.975, count - 1)
        half = float(quantile * values.std(ddof=1)) / count**0.5
        return cls(mean, mean - half, mean + half, count)

    def __str__(self) -> str:
        if self.seeds == 1:
            return f"{self.mean:+.2f} (one seed: no interval)"
        verdict = "no difference that these seeds can show" if self.low <= 0 <= self.high else "a difference"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}] over {self.seeds} seeds: {verdict}"


@dataclass(frozen=True)
class Study:
    """What a study measured."""

    name: str
    values: dict[str, dict[str, SeedValues]]
    """Variant -> measure -> seed -> value; variants in the order of the table."""

    @classmethod
    def load(cls, path: Path) -> "Study":
        """A table of scripts/ablate.py.

        Raises:
            FileNotFoundError: naming the command that makes the table.
            ValueError: on any other file.
        """
        if not path.is_file():
            raise MissingError(
                f"{path} is not there: `python scripts/ablate.py configs/ablations/{path.stem}.yaml"
                f" --table {path}` makes it"
            )
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            if rows.fieldnames != COLUMNS:
                raise UserError(f"{path} is no table of scripts/ablate.py: it has the columns {rows.fieldnames}")
            return cls(path.stem, _by_variant(rows))

    @classmethod
    def stored(cls, name: str) -> "Study":
        """The long runs' table, under eval/results/ablations."""
        return cls.load(STORED / f"{name}.csv")

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.values)

    def of(self, variant: str, measure: str) -> np.ndarray:
        """Values over the seeds.

        Returns:
            (S,) in the order of the table.

        Raises:
            ValueError: naming what is there where the study lacks them.
        """
        by_seed = self._by_seed(variant, measure)
        return np.array(list(by_seed.values()))

    def difference(self, variant: str, other: str, measure: str) -> Difference:
        """variant - other over the seeds that both have.

        Raises:
            ValueError: naming what is there where the study lacks them, or where they have no seed in common.
        """
        a = self._by_seed(variant, measure)
        b = self._by_seed(other, measure)
        shared = sorted(a.keys() & b.keys())
        if not shared:
            raise UserError(f"{self.name}: {variant} and {other} have no seed in common")
        gains = [a[seed] - b[seed] for seed in shared]
        return Difference.of(np.array(gains))

    def differences(self, other: str, measure: str) -> str:
        """One line for every other variant: its difference from `other`."""
        width = max(len(variant) for variant in self.variants)
        lines = [f"{measure}, against {other}:"]
        for variant in self.variants:
            if variant == other:
                continue
            difference = self.difference(variant, other, measure)
            lines.append(f"{variant:<{width}}  {difference}")
        return "\n".join(lines)

    def plot(self, measures: Sequence[str]) -> Figure:
        """Each measure a panel, each variant a row: a dot for every seed, a bar at their mean."""
        count = len(self.variants)
        size = (PANEL_WIDTH * len(measures), 0.8 + 0.42 * count)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
        for axes, measure in zip(panels, measures, strict=True):
            for row, variant in enumerate(self.variants):
                _plot_seeds(axes, row, self.of(variant, measure))
            axes.set(title=measure)
            axes.set_yticks(range(count), self.variants)
            axes.grid(axis="x", alpha=0.3)
        panels[0].invert_yaxis()
        return figure

    def curve(self, measures: Sequence[str], axis: str) -> Figure:
        """Each measure a panel, against variants that are numbers: the mean over the seeds.

        Args:
            measures: of the panels.
            axis: what the numbers are.
        """
        size = (PANEL_WIDTH * len(measures), 2.8)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(measures), squeeze=False)[0]
        at = [float(variant) for variant in self.variants]
        for axes, measure in zip(panels, measures, strict=True):
            means = [self.of(variant, measure).mean() for variant in self.variants]
            axes.plot(at, means, "o-", color=COLOURS[0])
            axes.set(title=measure, xlabel=axis)
            axes.grid(alpha=0.3)
        return figure

    def _by_seed(self, variant: str, measure: str) -> SeedValues:
        """Raises ValueError naming what is there where the study lacks it."""
        if variant not in self.values:
            raise UserError(f"{self.name} has no variant {variant!r}: {', '.join(self.values)}")
        measures = self.values[variant]
        if measure not in measures:
            raise UserError(f"{self.name}/{variant} has no {measure!r}: {', '.join(measures)}")
        return measures[measure]


def _by_variant(rows: Iterable[dict[str, str]]) -> dict[str, dict[str, SeedValues]]:
    """Rows of a table -> variant -> measure -> seed -> value."""
    values: dict[str, dict[str, SeedValues]] = {}
    for row in rows:
        of_variant = values.setdefault(row["variant"], {})
        of_measure = of_variant.setdefault(row["measure"], {})
        of_measure[int(row["seed"])] = float(row["value"])
    return values


def _plot_seeds(axes: Axes, row: int, values: np.ndarray) -> None:
    """A variant's values as dots in its row, with a bar at their mean.

    Args:
        axes: of the panel.
        row: of the variant, from 0.
        values: (S,), one a seed.
    """
    colour = COLOURS[row % len(COLOURS)]
    mean = values.mean()
    axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.6)
    bar = [row - 0.3, row + 0.3]
    axes.plot([mean, mean], bar, color=colour, linewidth=3)
