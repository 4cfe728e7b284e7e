"""Written molecules: valid, unique, new, and such as were asked for, as Brown et al. 2019 (GuacaMol) count the first
three.

Of what is written the valid share is molecules, of these the unique share differ, of these the novel share was not
trained on. What is asked for counts against all that is written: what is no molecule has nothing.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.intervals import Bootstrap, Interval, mean_intervals
from eval.tables import markdown, measured_on

MEASURES = ("valid", "unique", "novel", "rings", "groups", "both")
"""In the order of the table."""
LEGEND = (
    "Shares in %, in brackets 95 % bootstrap intervals. Valid is of all, unique of the valid, novel of the unique;"
    " rings, functional groups and both as they were asked for are of all."
)


@dataclass(frozen=True)
class Wanted:
    """What is asked of a molecule: its rings, in words, and its functional groups with their numbers."""

    rings: str
    groups: frozenset[str]


@dataclass(frozen=True)
class WrittenMolecule:
    """A molecule that was written: its canonical SMILES, and what could have been asked to get it."""

    smiles: str
    has: Wanted


@dataclass(frozen=True)
class MoleculeScores:
    """Shares in percent, and their 95 % bootstrap intervals; uniqueness has none: a resample repeats molecules."""

    values: dict[str, float]
    intervals: dict[str, Interval]


def score_molecules(
    written: Sequence[WrittenMolecule | None],
    trained: Collection[str],
    wanted: Sequence[Wanted] | None = None,
    bootstrap: Bootstrap = Bootstrap(),  # noqa: B008  # frozen
) -> MoleculeScores:
    """Score molecules.

    Args:
        written: N of them, None for what is no molecule.
        trained: canonical SMILES of those that were trained on.
        wanted: what was asked of each; None where nothing was.
        bootstrap: how intervals are made.

    Returns:
        the shares of MEASURES; without `wanted` the first three. A share of nothing is 0.
    """
    valid = [molecule for molecule in written if molecule is not None]
    unique = list(dict.fromkeys(molecule.smiles for molecule in valid))
    rows = {"valid": _percent(molecule is not None for molecule in written)}
    rows["novel"] = _percent(smiles not in trained for smiles in unique)
    if wanted is not None:
        pairs = list(zip(written, wanted, strict=True))
        rows["rings"] = _percent(found is not None and found.has.rings == asked.rings for found, asked in pairs)
        rows["groups"] = _percent(found is not None and found.has.groups == asked.groups for found, asked in pairs)
        rows["both"] = _percent(found is not None and found.has == asked for found, asked in pairs)
    values = {name: float(row.mean()) if len(row) else 0.0 for name, row in rows.items()}
    values["unique"] = 100 * len(unique) / max(1, len(valid))
    intervals = {}
    for name, row in rows.items():
        if len(row):
            intervals[name] = mean_intervals({name: row}, np.arange(len(row)), bootstrap)[name]
    return MoleculeScores({name: values[name] for name in MEASURES if name in values}, intervals)


def _percent(true: Iterable[bool]) -> np.ndarray:
    """100 where true, else 0."""
    return 100.0 * np.fromiter(true, dtype=np.float64)


def molecules_table(results: Sequence[Mapping[str, Any]]) -> str:
    """What was written, by a run and by an n-gram model, freely and of held-out properties.

    Args:
        results: as scripts/eval_molecules.py writes them.
    """
    rows = []
    for result in results:
        names = {"run": Path(result["evaluated"]).name, "ngram": f"{result['order']}-gram"}
        drawn = f"temperature {result['decoding']['temperature']:g}, top-p {result['decoding']['top_p']:g}"
        for kind, scores in result["scores"].items():
            for writer, of_writer in scores.items():
                cells = [cell(of_writer, measure) for measure in MEASURES]
                rows.append([names[writer], f"{kind}, {result['molecules'][kind]:,}", drawn, *cells])
    table = markdown(("written by", "of, number", "drawn at", *MEASURES), rows)
    return f"{table}\n\n{LEGEND} {measured_on(results)}."


def cell(scores: Mapping[str, Any], measure: str) -> str:
    """A share, and its interval where it has one."""
    if measure not in scores["values"]:
        return "–"
    value = f"{scores['values'][measure]:.1f}"
    if measure not in scores["intervals"]:
        return value
    low, high = scores["intervals"][measure]
    return f"{value} ({low:.1f} to {high:.1f})"
