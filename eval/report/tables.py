"""The tables of a report: figures beside chance and a baseline, and utilization."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.diagnostics import Diagnostics, Utilization, code_utilization, expert_overlap, expert_utilization
from eval.figures import Figures
from eval.measures import random_recall
from eval.protocols import Protocol
from eval.report.charts import arrow
from eval.report.markup import Cell, Table

CODES, EXPERTS = "Use of each quantizer", "Use of each layer"
RECALLS = ("R@1", "R@5", "R@10")
SLASHED = "R@1\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}5\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}10"
UTILIZATION_HEADS = ["", "size", "dead", "used %", "perplexity", "peak / mean"]
FORCED = {"accuracy": 50.0, "auc": 50.0, "forced_choice": 50.0}
"""Measures between two equally likely answers -> chance, in percent."""
HIDDEN = ("codes/", "experts/", "chance/")
"""Figures that have tables or columns of their own."""


@dataclass(frozen=True)
class Baseline:
    """Somebody else's figures under the same protocol."""

    name: str
    metrics: Mapping[str, float]


def retrieval_table(figures: Figures, chances: Mapping[str, float], baseline: Baseline | None) -> Table | None:
    """A row for each direction, re-ranked ones below; recalls with intervals, then chance and the baseline.

    Args:
        figures: of one protocol.
        chances: R@1 of a random ranking by direction, in percent; the protocol's sizes tell those that are not there.
        baseline: whose figures stand in the last column, if any.

    Returns:
        None where nothing is retrieved.
    """
    names = [name.removesuffix("/R@1") for name in figures.metrics if name.endswith("_to_text/R@1")]
    names += [
        name.removesuffix("/R@1") for name in figures.metrics if name.endswith(("_to_image/R@1", "_to_audio/R@1"))
    ]
    names = [name for name in names if name.rpartition("/")[0] in ("", "reranked")]
    if not names:
        return None
    order = [name.removesuffix("/R@1") for name in figures.metrics if name.removesuffix("/R@1") in names]
    heads = ["any-hit recall, %", *RECALLS, "median rank", f"chance {SLASHED}"]
    if baseline:
        heads.append(f"{baseline.name} {SLASHED}")
    rows = []
    for name in order:
        direction = name.removeprefix("reranked/")
        again = f", best {figures.protocol.rerank_depth} re-ranked" if name != direction else ""
        row = [Cell(f"{arrow(direction)}{again}")]
        row += [_cell(figures, f"{name}/{recall}") for recall in RECALLS]
        row.append(_cell(figures, f"{name}/median_rank", 0))
        row.append(
            Cell(_slashed(chance_at(figures.protocol, direction, k, chances.get(direction)) for k in (1, 5, 10)))
        )
        if baseline:
            row.append(Cell(_slashed(baseline.metrics.get(f"{name}/{recall}", math.nan) for recall in RECALLS)))
        rows.append(row)
    return Table(f"{figures.protocol.name}, {figures.protocol.sizes()}", heads, rows, _note(figures, baseline))


def _note(figures: Figures, baseline: Baseline | None) -> str:
    """RSUM, what re-ranking adds, and what the columns mean."""
    parts = []
    for name in ("RSUM", "reranked/RSUM", "rsum"):
        if name in figures.metrics:
            against = (
                f" ({baseline.name} {baseline.metrics[name]:.1f})" if baseline and name in baseline.metrics else ""
            )
            parts.append(f"{name.replace('/', ' ')} {figures.metrics[name]:.1f}{against}.")
    gains = []
    for name, (low, high) in figures.intervals.items():
        if name.startswith("reranked/") and name.endswith("/gain@1"):
            gains.append(f"{arrow(name.split('/')[1])} {figures.metrics[name]:+.1f} [{low:+.1f}, {high:+.1f}]")
    if gains:
        parts.append(f"Re-ranking adds to R@1: {', '.join(gains)}.")
    parts.append("Small print: 95 % intervals, bootstraps over images. Chance: a random ranking.")
    if baseline is None:
        parts.append("No baseline: no other result of this protocol is stored.")
    return " ".join(parts)


def chance_at(protocol: Protocol, direction: str, k: int, first: float | None = None) -> float:
    """Any-hit R@k of a random ranking, in percent; NaN where the protocol does not tell.

    Args:
        protocol: of the figures.
        direction: such as `image_to_text`.
        k: depth.
        first: R@1 of a random ranking in percent, if it is known.
    """
    if protocol.ground_truth != "original" or protocol.task != "retrieval":
        return math.nan
    asking, _, asked = direction.partition("_to_")
    sizes = {"image": protocol.images, "text": protocol.captions}
    gallery = protocol.gallery.get(direction, sizes.get(asked, 0))
    if first is None:
        if {asking, asked} != {"image", "text"} or not protocol.images:
            return math.nan
        first = 100 * (protocol.captions / protocol.images if asked == "text" else 1.0) / max(gallery, 1)
    matches = first / 100 * gallery
    return random_recall(k, gallery, matches) if gallery else math.nan


def other_table(figures: Figures) -> Table | None:
    """Every figure that is no recall of a direction: value, interval, and chance where it is known."""
    rows = []
    for name in figures.metrics:
        direction = name.removeprefix("reranked/").split("/")[0]
        if name.startswith(HIDDEN) or "_to_" in direction or name.removeprefix("reranked/") in ("RSUM", "rsum"):
            continue
        chance = forced_chance(name, figures.protocol)
        rows.append([Cell(name), _cell(figures, name, 2), Cell("" if math.isnan(chance) else f"{chance:g}")])
    if not rows:
        return None
    return Table(str(figures.protocol), ["measure", "value", "chance"], rows)


def forced_chance(name: str, protocol: Protocol) -> float:
    """Of a measure that is a choice, in percent; NaN of any other."""
    if protocol.task.startswith("forced choice"):
        return 50.0
    return FORCED.get(name, math.nan)


def _cell(figures: Figures, name: str, digits: int = 1) -> Cell:
    """A figure with its interval in small print; empty where it was not measured."""
    if name not in figures.metrics:
        return Cell("–")
    value = f"{figures.metrics[name]:.{digits}f}"
    if name not in figures.intervals:
        return Cell(value)
    low, high = figures.intervals[name]
    return Cell(value, f"{low:.{digits}f}–{high:.{digits}f}")


def _slashed(values: Any) -> str:
    """Numbers with slashes between; a dash for what is not known."""
    found = list(values)
    if all(math.isnan(value) for value in found):
        return "–"
    return " / ".join("–" if math.isnan(value) else f"{value:.1f}" for value in found)


def utilization_tables(diagnostics: Diagnostics) -> list[Table]:
    """Of codes and of experts, those that have counts."""
    codes = _utilization_rows(code_utilization(diagnostics.code_counts), "quantizer")
    experts = _utilization_rows(expert_utilization(diagnostics.expert_load), "layer")
    shared = _shared_routing(diagnostics.expert_load)
    tables = []
    for title, rows, note in ((CODES, codes, ""), (EXPERTS, experts, shared)):
        if rows:
            tables.append(Table(title, UTILIZATION_HEADS, rows, note))
    return tables


def _shared_routing(load: Mapping[str, np.ndarray]) -> str:
    """A note of what modalities share; nothing of one alone."""
    if len(load) < 2:
        return ""
    shares = [f"{pair} {share:.2f}" for pair, share in expert_overlap(load).items()]
    return "Shared routing mass: " + ", ".join(shares)


def _utilization_rows(found: Mapping[str, Sequence[Utilization]], part: str) -> list[list[Cell]]:
    """A row for each modality and `part`, under UTILIZATION_HEADS."""
    rows = []
    for modality, parts in found.items():
        for index, each in enumerate(parts):
            cells = [
                f"{modality}, {part} {index}",
                f"{each.size}",
                f"{each.dead}",
                f"{each.used:.1f}",
                f"{each.perplexity:.1f}",
                f"{each.peak:.1f}",
            ]
            rows.append([Cell(cell) for cell in cells])
    return rows
