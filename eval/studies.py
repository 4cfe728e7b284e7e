"""A study read back: the tidy table that scripts/ablate.py writes, paired differences over seeds, and their image."""

import csv
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from eval.plots import COLOURS

ROOT = Path(__file__).parents[1]
STORED = ROOT / "eval" / "results" / "ablations"
COLUMNS = ["study", "variant", "seed", "measure", "value"]


@dataclass(frozen=True)
class Difference:
    """Of two variants in one measure, seed by seed: mean (), 95 % interval (t over the seeds), and the seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        if self.seeds == 1:
            return f"{self.mean:+.2f} (one seed: no interval)"
        verdict = "no difference that these seeds can show" if self.low <= 0 <= self.high else "a difference"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}] over {self.seeds} seeds: {verdict}"


@dataclass(frozen=True)
class Study:
    """values[variant][measure][seed]; variants in the order of the table."""

    name: str
    values: dict[str, dict[str, dict[int, float]]]

    @classmethod
    def load(cls, path: Path) -> "Study":
        """Raises FileNotFoundError naming the command that makes the table, ValueError on any other file."""
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is not there: `python scripts/ablate.py configs/ablations/{path.stem}.yaml"
                f" --table {path}` makes it"
            )
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            if rows.fieldnames != COLUMNS:
                raise ValueError(f"{path} is no table of scripts/ablate.py: it has the columns {rows.fieldnames}")
            values: dict[str, dict[str, dict[int, float]]] = {}
            for row in rows:
                of_variant = values.setdefault(row["variant"], {})
                of_variant.setdefault(row["measure"], {})[int(row["seed"])] = float(row["value"])
        return cls(path.stem, values)

    @classmethod
    def stored(cls, name: str) -> "Study":
        """The long runs' table, under eval/results/ablations."""
        return cls.load(STORED / f"{name}.csv")

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.values)

    def of(self, variant: str, measure: str) -> np.ndarray:
        """Values over the seeds (S,). Raises ValueError naming what is there where the study lacks them."""
        if variant not in self.values:
            raise ValueError(f"{self.name} has no variant {variant!r}: {', '.join(self.values)}")
        if measure not in self.values[variant]:
            raise ValueError(f"{self.name}/{variant} has no {measure!r}: {', '.join(self.values[variant])}")
        return np.array(list(self.values[variant][measure].values()))

    def difference(self, variant: str, other: str, measure: str) -> Difference:
        """variant - other over the seeds that both have."""
        self.of(variant, measure), self.of(other, measure)
        a, b = self.values[variant][measure], self.values[other][measure]
        shared = sorted(a.keys() & b.keys())
        if not shared:
            raise ValueError(f"{self.name}: {variant} and {other} have no seed in common")
        values = np.array([a[seed] - b[seed] for seed in shared])
        count, mean = len(values), float(values.mean())
        if count == 1:
            return Difference(mean, float("-inf"), float("inf"), 1)
        half = float(student_t.ppf(0.975, count - 1) * values.std(ddof=1)) / count**0.5
        return Difference(mean, mean - half, mean + half, count)

    def differences(self, other: str, measure: str) -> str:
        """One line for every other variant: its difference from `other`."""
        width = max(map(len, self.variants))
        lines = [f"{v:<{width}}  {self.difference(v, other, measure)}" for v in self.variants if v != other]
        return "\n".join([f"{measure}, against {other}:", *lines])

    def plot(self, measures: Sequence[str]) -> Figure:
        """Each measure a panel, each variant a row: a dot for every seed, a bar at their mean."""
        figure = Figure(figsize=(3.6 * len(measures), 0.8 + 0.42 * len(self.variants)), layout="constrained")
        panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
        for axes, measure in zip(panels, measures, strict=True):
            for row, variant in enumerate(self.variants):
                values, colour = self.of(variant, measure), COLOURS[row % len(COLOURS)]
                axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.6)
                axes.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=3)
            axes.set(title=measure, yticks=range(len(self.variants)), yticklabels=self.variants)
            axes.grid(axis="x", alpha=0.3)
        panels[0].invert_yaxis()
        return figure

    def curve(self, measures: Sequence[str], axis: str) -> Figure:
        """Each measure a panel, against variants that are numbers: the mean over the seeds."""
        figure = Figure(figsize=(3.6 * len(measures), 2.8), layout="constrained")
        at = [float(variant) for variant in self.variants]
        for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
            axes.plot(at, [self.of(variant, measure).mean() for variant in self.variants], "o-", color=COLOURS[0])
            axes.set(title=measure, xlabel=axis)
            axes.grid(alpha=0.3)
        return figure


def run_again(name: str, steps: int, runs: Path = ROOT / "runs" / "notebooks") -> Study:
    """The study anew with one seed and few steps, by scripts/ablate.py; what has been run is not run again.

    Raises CalledProcessError where a run fails; its output is shown.
    """
    table = runs / f"{name}-{steps}.csv"
    settings = f"{{train.steps: {steps}}}"
    command = [
        sys.executable,
        "scripts/ablate.py",
        f"configs/ablations/{name}.yaml",
        "--seeds",
        "[0]",
        "--settings",
        settings,
        "--runs",
        str(runs / f"{steps}"),
        "--table",
        str(table),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    return Study.load(table)
