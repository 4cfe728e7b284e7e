"""Light models: what a run takes, in bytes and milliseconds, beside what it loses, with paired intervals.

A run is on the Pareto front where no other of the same table is at most as large and has at least its RSUM, and is
better in one of the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from eval.compare import ComparedRun, QueryRecalls
from eval.intervals import PairedTest, paired_test
from eval.tables import markdown

MEGABYTE = 1e6
SHOWN = ("RSUM", "image_to_text/R@1", "text_to_image/R@1")


@dataclass(frozen=True)
class LightRow:
    """One model.

    Args:
        name: of the run.
        bytes: of its file of weights.
        rsum: of its embeddings, without re-ranking.
        differences: to the first run, by measure, in points.
        milliseconds: of what was timed, by name.
    """

    name: str
    bytes: int
    rsum: float
    differences: Mapping[str, PairedTest]
    milliseconds: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For a file of results."""
        differences = {}
        for measure, test in self.differences.items():
            differences[measure] = {"difference": test.difference, "low": test.low, "high": test.high, "p": test.p}
        return {
            "name": self.name,
            "bytes": self.bytes,
            "RSUM": self.rsum,
            "differences": differences,
            "milliseconds": dict(self.milliseconds),
        }

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> "LightRow":
        """From a file of results."""
        differences = {measure: PairedTest(**test) for measure, test in stored["differences"].items()}
        return cls(stored["name"], stored["bytes"], stored["RSUM"], differences, stored["milliseconds"])

    def cells(self, first: "LightRow") -> list[str]:
        """Megabytes, bytes and differences beside the first run's, RSUM."""
        found = [f"{self.bytes / MEGABYTE:.2f}", f"{self.bytes / first.bytes:.3f}", f"{self.rsum:.1f}"]
        for measure in SHOWN:
            test = self.differences[measure]
            said = f"{test.difference:+.2f} [{test.low:+.2f}, {test.high:+.2f}]"
            found.append("—" if self is first else said)
        return found


def light_rows(
    runs: Sequence[ComparedRun], sizes: Sequence[int], milliseconds: Sequence[Mapping[str, float]]
) -> list[LightRow]:
    """Each run beside the first.

    Args:
        runs: of one protocol and the same items.
        sizes: bytes of their files.
        milliseconds: what was timed of each, by name; empty where nothing was.
    """
    base = with_rsum(runs[0])
    rows = []
    for run, size, times in zip(runs, sizes, milliseconds, strict=True):
        own = with_rsum(run)
        differences = {m: paired_test(base[m].percent, own[m].percent, own[m].image) for m in SHOWN}
        rows.append(LightRow(run.name, size, float(own["RSUM"].percent.mean()), differences, times))
    return rows


def with_rsum(run: ComparedRun) -> dict[str, QueryRecalls]:
    """A run's recalls, query by query, and RSUM image by image: the mean over images is the sum of the recalls."""
    ids = np.unique(next(iter(run.recalls.values())).image)
    total = np.zeros(len(ids))
    for recall in run.recalls.values():
        position = np.searchsorted(ids, recall.image)
        total += np.bincount(position, weights=recall.percent, minlength=len(ids)) * len(ids) / len(recall.percent)
    return {**run.recalls, "RSUM": QueryRecalls(total, ids)}


def pareto(rows: Sequence[LightRow]) -> list[LightRow]:
    """Those on the front, smallest first."""
    front: list[LightRow] = []
    for row in sorted(rows, key=lambda row: (row.bytes, -row.rsum)):
        if not front or row.rsum > front[-1].rsum:
            front.append(row)
    return front


def light_table(rows: Sequence[LightRow]) -> Table:
    """Bytes, recalls against the first run, and milliseconds; a star marks the Pareto front of bytes and RSUM."""
    table = Table(title=f"bytes against RSUM, differences to {rows[0].name} in points, paired over images (95 %)")
    table.add_column("run", overflow="fold")
    timed = list(rows[0].milliseconds)
    for column in (
        "MB",
        "of first",
        "RSUM",
        *(f"Δ {measure}" for measure in SHOWN),
        *(f"ms, {name}" for name in timed),
    ):
        table.add_column(column, justify="right")
    front = {row.name for row in pareto(rows)}
    for row in rows:
        times = [f"{row.milliseconds[name]:.2f}" for name in timed]
        table.add_row(row.name + (" *" if row.name in front else ""), *row.cells(rows[0]), *times)
    return table


def pareto_plot(points: Sequence[tuple[str, float, float]]) -> Figure:
    """Megabytes against RSUM, the front joined by a line.

    Args:
        points: name, megabytes and RSUM of each model.
    """
    rows = [LightRow(name, round(size * MEGABYTE), rsum, {}) for name, size, rsum in points]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    front = pareto(rows)
    axes.plot([row.bytes / MEGABYTE for row in front], [row.rsum for row in front], color="0.6", zorder=1)
    for row in rows:
        axes.scatter(row.bytes / MEGABYTE, row.rsum, color="C0" if row in front else "C1", zorder=2)
        axes.annotate(row.name, (row.bytes / MEGABYTE, row.rsum), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("MB on disk")
    axes.set_ylabel("RSUM")
    return figure


def light_page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """What scripts/bench_light.py stored, by the names of its files: of each set a picture and a table of prices, then
    what was timed, then what was held in memory."""
    parts = []
    for name, result in results.items():
        picture = f"![Megabytes on disk against RSUM, the Pareto front joined](img/{name}.svg)"
        parts.append(f"**{result['protocol']}**, commit {result['commit']}\n\n{picture}\n\n{price_table(result)}")
    parts += [speed_table(result) for result in results.values() if result["speed"]]
    parts += [resident_table(result) for result in results.values() if result["resident"]]
    return "\n\n".join(parts)


def price_table(result: Mapping[str, Any]) -> str:
    """Bytes and recalls of each model beside the first one's."""
    priced = [LightRow.of_json(row) for row in result["price"]]
    rows = [[row.name, *row.cells(priced[0])] for row in priced]
    return markdown(["run", "MB", "of the first", "RSUM", *(f"Δ {measure}" for measure in SHOWN)], rows)


def speed_table(result: Mapping[str, Any]) -> str:
    """Milliseconds by graph, batch, cores and engine."""
    rows = []
    for row in result["speed"]:
        times = [f"{row['milliseconds']:.2f}", f"{row['per_second']:.0f}"]
        rows.append([row["case"], str(row["threads"]), row["implementation"], *times])
    table = markdown(["graph, batch", "cores", "executed by", "ms", "a second"], rows)
    return f"{table}\n\nMeasured on: {result['speed'][0]['device']}, commit {result['commit']}."


def resident_table(result: Mapping[str, Any]) -> str:
    """By how much the resident memory of a process grows until it embeds an image and a caption."""
    rows = [[row["implementation"], f"{row['bytes'] / MEGABYTE:.1f}"] for row in result["resident"]]
    return markdown(["executed by", "MB resident, weights and work"], rows)


def points_of(result: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Name, megabytes and RSUM of each model that scripts/bench_light.py compared."""
    return [(row["name"], row["bytes"] / MEGABYTE, row["RSUM"]) for row in result["price"]]
