"""Runs side by side under one protocol, each against the first, with paired tests on the same items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from rich.table import Table

from eval.coco import DIRECTIONS
from eval.embeddings import Embeddings
from eval.figures import first_protocol
from eval.intervals import Interval, mean_intervals, paired_test
from eval.protocols import Protocol
from eval.retrieval import retrieval_both
from kernels.errors import UserError

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Row:
    """One column of a table: who, under which protocol, with which numbers."""

    name: str
    protocol: Protocol
    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class QueryRecalls:
    """A recall of one direction, query by query."""

    percent: np.ndarray
    """(Q,) 100 where the query found a match."""
    image: np.ndarray
    """(Q,) the image of each query."""


@dataclass(frozen=True)
class ComparedRun:
    """A run whose recalls are made anew from its embeddings alone."""

    name: str
    protocol: Protocol
    embeddings: Embeddings
    recalls: dict[str, QueryRecalls]

    @classmethod
    def of(cls, name: str, result: Mapping[str, Any], embeddings: Embeddings) -> "ComparedRun":
        """From a run's result.json and embeddings.npz, which are of the evaluation that counts.

        Nothing is re-ranked here, whatever the run's own figures were.
        """
        protocol = replace(first_protocol(result), rerank_depth=0)
        paired = embeddings.paired()
        return cls(name, protocol, paired, query_recalls(paired))

    def row(self) -> Row:
        """Means and intervals of the recalls."""
        metrics = {}
        intervals: dict[str, Interval] = {}
        for measure, recall in self.recalls.items():
            metrics[measure] = float(recall.percent.mean())
            intervals |= mean_intervals({measure: recall.percent}, recall.image)
        return Row(self.name, self.protocol, metrics, intervals)


def query_recalls(embeddings: Embeddings) -> dict[str, QueryRecalls]:
    """`<direction>/R@k` of images and captions."""
    ids = (embeddings.image_ids, embeddings.caption_image_ids)
    both = retrieval_both(embeddings.image, embeddings.text, *ids)
    found = {}
    for direction, result, image in zip(DIRECTIONS, both, ids, strict=True):
        for index, k in enumerate(result.ks):
            found[f"{direction}/R@{k}"] = QueryRecalls(100 * result.hits[:, index], image)
    return found


def compare(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """How each run differs from the first: run, measure, difference, low, high and p of every recall.

    Raises:
        ValueError: on less than two runs, or naming a run that was evaluated on other items.
    """
    if len(runs) < 2:
        raise UserError("comparing needs at least two runs")
    base, *others = runs
    found = []
    for run in others:
        for ids in ("image_ids", "caption_image_ids"):
            if not np.array_equal(getattr(run.embeddings, ids), getattr(base.embeddings, ids)):
                raise UserError(f"{run.name} was evaluated on other items than the first run ({ids} differ)")
        for measure, recall in run.recalls.items():
            test = paired_test(base.recalls[measure].percent, recall.percent, recall.image)
            found.append(
                {
                    "run": run.name,
                    "measure": measure,
                    "difference": test.difference,
                    "low": test.low,
                    "high": test.high,
                    "p": test.p,
                }
            )
    return found


def results_table(rows: Sequence[Row]) -> Table:
    """A column for each run and a line for each measure: names stay whole on a narrow terminal.

    Raises:
        ValueError: where two protocols would share the table, naming the fields in which they differ.
    """
    if not rows:
        raise ValueError("a table needs at least one row")
    first, *others = rows
    for row in others:
        if differs := first.protocol.differences(row.protocol):
            raise UserError(
                f"{first.name} and {row.name} were measured under different protocols and cannot share a"
                f" table ({'; '.join(differs)}): print one table per protocol"
            )
    table = Table(title=str(first.protocol), title_justify="left")
    table.add_column("measure", no_wrap=True)
    measures: dict[str, None] = {}
    for row in rows:
        table.add_column(row.name, justify="right", overflow="fold")
        measures |= dict.fromkeys(row.metrics)
    for measure in measures:
        cells = [_cell(row, measure) for row in rows]
        table.add_row(measure, *cells)
    seen = [f"{row.name}, the trunks have seen: {row.protocol.pretraining}" for row in rows]
    table.caption = "\n".join(seen)
    return table


def comparison_table(comparison: Sequence[Mapping[str, Any]], base: str) -> Table:
    """What `compare` found, in points; a star marks p below 0.05."""
    title = f"Difference to {base}, in points (paired over images; p by sign-flip permutation)"
    table = Table(title=title, title_justify="left")
    for column in ("run", "measure"):
        table.add_column(column)
    for column in ("difference", "95 % interval", "p"):
        table.add_column(column, justify="right")
    for row in comparison:
        interval = f"{row['low']:+.2f} .. {row['high']:+.2f}"
        star = " *" if row["p"] < SIGNIFICANT else ""
        table.add_row(row["run"], row["measure"], f"{row['difference']:+.2f}", interval, f"{row['p']:.4f}{star}")
    return table


def _cell(row: Row, measure: str) -> str:
    """`50.00 [48.00, 52.00]`, or — where it was not measured."""
    if measure not in row.metrics:
        return "—"
    text = f"{row.metrics[measure]:.2f}"
    if measure in row.intervals:
        low, high = row.intervals[measure]
        text += f" [{low:.2f}, {high:.2f}]"
    return text
