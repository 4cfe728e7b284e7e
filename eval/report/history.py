"""metrics.csv: what training logged, and the plots of it."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from eval.report.markup import figure, grid, key
from eval.report.svg import SMALL, Axis, Band, Line, panel

Row = dict[str, float]
TRAIN, VALIDATION = "train/", "val/"
STEPS = Axis("step", low=0)


def read_history(path: Path) -> list[Row]:
    """metrics.csv -> rows of the numbers that are there; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return numeric_rows(csv.DictReader(file))


def numeric_rows(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows without their empty cells and without what is not a finite number.

    CSV loggers leave an empty cell wherever a term was not logged at that step.
    """
    found = []
    for row in rows:
        kept = {}
        for name, cell in row.items():
            value = _number(cell)
            if math.isfinite(value):
                kept[name] = value
        found.append(kept)
    return found


def curve(history: Sequence[Row], name: str) -> list[tuple[float, float]]:
    """(step, value) of a column, where it was logged."""
    return [(row["step"], row[name]) for row in history if name in row and "step" in row]


def columns(history: Sequence[Row], prefix: str = "") -> list[str]:
    """The columns that begin with a prefix, `<prefix>total` first."""
    names = {name for row in history for name in row if name.startswith(prefix)}
    return sorted(names, key=lambda name: (name != f"{prefix}total", name))


def stage_bands(config: Mapping[str, Any], history: Sequence[Row]) -> list[Band]:
    """The stages of a run's schedule, in steps; none of a schedule that has no stages.

    Args:
        config: of a result.json.
        history: rows of metrics.csv; a run that was adapted has its base's settings, and logged no change of stage.
    """
    schedule = config.get("schedule", {})
    steps = config.get("train", {}).get("steps", 0)
    logged = {row["stage"] for row in history if "stage" in row}
    if schedule.get("kind") != "progressive" or not steps or len(logged) < 2:
        return []
    edges = [0.0, steps * schedule["stage2"], steps * schedule["stage3"], float(steps)]
    return [Band(edges[at], edges[at + 1], f"stage {at + 1}") for at in range(3)]


def multiples(history: Sequence[Row], names: Sequence[str], bands: Sequence[Band]) -> Markup:
    """A small panel for each column, each on a scale of its own, under the same stages."""
    steps = [row["step"] for row in history if "step" in row]
    across = replace(STEPS, high=max(steps)) if steps else STEPS
    panels = []
    for name in names:
        points = curve(history, name)
        shown = name.removeprefix(TRAIN)
        summary = shown
        if points:
            summary += f": {points[0][1]:.4g} at step {points[0][0]:g}, {points[-1][1]:.4g} at step {points[-1][0]:g}"
        panels.append(figure(panel([Line(points)], across, Axis(), summary=summary, bands=bands, size=SMALL), shown))
    return grid(panels, "multiples")


def validation_plots(history: Sequence[Row], chances: Mapping[str, float], bands: Sequence[Band]) -> Markup:
    """RSUM, then R@1 by pair of modalities, of evaluations during training; dotted lines are chance.

    Args:
        history: rows of metrics.csv.
        chances: R@1 of a random ranking by direction, in percent.
        bands: the stages.
    """
    figures = []
    rsum = curve(history, f"{VALIDATION}RSUM")
    if rsum:
        up = Axis("RSUM", low=0)
        plot = panel([Line(rsum)], STEPS, up, summary=_said("RSUM", rsum), bands=bands, size=SMALL)
        figures.append(figure(plot, "RSUM: the six recalls of images and captions, added up"))
    for names in _by_pair(history).values():
        lines = []
        keys = []
        for colour, name in enumerate(names):
            direction = name.split("/")[1]
            points = curve(history, name)
            lines.append(Line(points, colour))
            keys.append((direction.replace("_to_", " → "), colour))
            if direction in chances:
                lines.append(Line([(points[0][0], chances[direction]), (points[-1][0], chances[direction])], 5, True))
        summary = "; ".join(_said(name.removeprefix(VALIDATION), curve(history, name)) for name in names)
        plot = panel(lines, STEPS, Axis("R@1, %", low=0), summary=summary, bands=bands, size=SMALL)
        figures.append(figure(plot, key(keys)))
    return grid(figures, "multiples")


def _by_pair(history: Sequence[Row]) -> dict[tuple[str, ...], list[str]]:
    """The columns of R@1, both directions of a pair together."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in columns(history, VALIDATION):
        _, *middle, measure = name.split("/")
        if measure == "R@1" and len(middle) == 1 and "_to_" in middle[0]:
            pair = tuple(sorted(middle[0].split("_to_")))
            found.setdefault(pair, []).append(name)
    return dict(sorted(found.items(), key=lambda pair: pair[0] != ("image", "text")))


def _said(name: str, points: Sequence[tuple[float, float]]) -> str:
    return f"{name}: {points[0][1]:.1f} at step {points[0][0]:g}, {points[-1][1]:.1f} at step {points[-1][0]:g}"


def _number(cell: Any) -> float:
    """NaN for what is no number."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan
