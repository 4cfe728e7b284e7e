"""`report.html`: what a run did, in one file that opens from disk.

Table with intervals, recall curves, similarities of matched and unmatched pairs, best and worst retrievals as images,
code utilization, expert load per modality and layer, and the losses by stage. A part whose numbers are absent is
skipped and named in a log line, never drawn empty.
"""

import csv
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from numpy.typing import ArrayLike

from eval.diagnostics import Diagnostics
from eval.figures import first_protocol, split_figures
from eval.plots import (
    Curve,
    code_utilization_curves,
    expert_heat_map,
    loss_curves,
    recall_curves,
    similarity_histogram,
)
from eval.report_cards import Examples, Side, cards_of, sides_of
from eval.report_tables import metrics_table, utilization_tables
from eval.report_template import PAGE
from eval.retrieval import RetrievalResult, matching_pairs, retrieval_both

log = logging.getLogger(__name__)
CURVE_AT = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500)
PAIRS = (("image", "text"), ("audio", "text"), ("image", "audio"))
"""The first of them that a run has is shown by examples."""
FACTS = {
    "parameters_total": "parameters",
    "parameters_active": "active per token",
    "seconds": "seconds",
    "hardware": "hardware",
    "commit": "commit",
    "seed": "seed",
}
"""Field of a result.json -> what the report calls it."""
MOST_PAIRS = 20_000
"""Matched pairs of the histogram."""
Row = dict[str, float]
Plot = dict[str, str]


def write_report(
    path: Path,
    *,
    result: Mapping[str, Any],
    history: Sequence[Row],
    embeddings: Mapping[str, ArrayLike],
    diagnostics: Diagnostics,
    examples: Examples,
    title: str = "",
) -> Path:
    """Write the report of one run.

    Args:
        path: of the report.
        result: a result.json.
        history: the rows of metrics.csv, see `read_history`.
        embeddings: the arrays of embeddings.npz.
        diagnostics: utilization of codes and experts.
        examples: captions and images that are shown.
        title: by default the name of the folder.

    Returns:
        the path.

    Raises:
        ValueError: when captions and text vectors differ in number, and where no two modalities share an image.
    """
    vectors = {name: np.asarray(array) for name, array in embeddings.items()}
    if "text" in vectors and len(examples.captions) != len(vectors["text"]):
        raise ValueError(
            f"{len(examples.captions)} captions for {len(vectors['text'])} text vectors: they must run parallel"
        )
    found = _retrieve(vectors)
    if not found:
        raise ValueError(f"nothing to report: no two of {', '.join(vectors)} share an image")
    first = found[0]
    template = Environment(autoescape=True).from_string(PAGE)
    page = template.render(
        title=title or path.resolve().parent.name,
        facts=_facts(result),
        tables=[metrics_table(result), *utilization_tables(diagnostics)],
        plots=[*_retrieval_plots(found), *_training_plots(diagnostics, history)],
        cards=[
            cards_of(first.a, first.b, first.forward, examples),
            cards_of(first.b, first.a, first.backward, examples),
        ],
    )
    path.write_text(page, encoding="utf-8")
    return path


def read_history(path: Path) -> list[Row]:
    """metrics.csv -> rows of the numbers that are there."""
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
            if np.isfinite(value):
                kept[name] = value
        found.append(kept)
    return found


def _number(cell: Any) -> float:
    """NaN for what is no number."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")


def _facts(result: Mapping[str, Any]) -> list[str]:
    """A line for each protocol, and one of what else a result says."""
    lines = []
    for figures in split_figures(result).values():
        lines.append(f"Protocol: {figures.protocol}")
    lines.append(f"The trunks have seen: {first_protocol(result).pretraining}")
    shown = []
    for field, label in FACTS.items():
        if field in result:
            value = result[field]
            shown.append(f"{label} {value:,}" if isinstance(value, int | float) else f"{label} {value}")
    return [*lines, " · ".join(shown)]


@dataclass(frozen=True)
class _Retrieved:
    """A pair of modalities, retrieved both ways on the items that have a partner."""

    a: Side
    b: Side
    forward: RetrievalResult
    """a to b."""
    backward: RetrievalResult
    """b to a."""

    def pairs(self) -> np.ndarray:
        """(P, 2) positions in `a` and in `b` that belong together."""
        return matching_pairs(self.a.ids, self.b.ids)

    def curves(self) -> dict[str, Curve]:
        """Both directions by name."""
        a, b = self.a, self.b
        pairs = len(self.pairs())
        return {
            f"{a.modality}_to_{b.modality}": Curve(self.forward, len(b.ids), pairs / len(a.ids)),
            f"{b.modality}_to_{a.modality}": Curve(self.backward, len(a.ids), pairs / len(b.ids)),
        }


def _retrieve(vectors: Mapping[str, np.ndarray]) -> list[_Retrieved]:
    """Every pair at many k; k beyond a gallery is dropped."""
    found = []
    for pair in PAIRS:
        sides = sides_of(vectors, *pair)
        if sides is None:
            continue
        a, b = sides
        ks = [k for k in CURVE_AT if k <= min(len(a.ids), len(b.ids))]
        forward, backward = retrieval_both(a.vectors, b.vectors, a.ids, b.ids, ks)
        found.append(_Retrieved(a, b, forward, backward))
    return found


def _retrieval_plots(found: Sequence[_Retrieved]) -> list[Plot]:
    curves: dict[str, Curve] = {}
    for pair in found:
        curves |= pair.curves()
    matched, unmatched = _similarities(found[0])
    return [
        _plot("recall", "Recall curves", recall_curves(curves), "Dotted: chance."),
        _plot(
            "similarity",
            f"Similarity of matched and unmatched pairs of {found[0].a.modality} and {found[0].b.modality}",
            similarity_histogram(matched, unmatched),
            "Unmatched pairs are drawn at random, as many as matched ones.",
        ),
    ]


def _training_plots(diagnostics: Diagnostics, history: Sequence[Row]) -> list[Plot]:
    """Code utilization, expert load and losses, those that have numbers."""
    plots = []

    def draw(name: str, title: str, numbers: Any, image: Callable[[], str], note: str = "") -> None:
        if len(numbers):
            plots.append(_plot(name, title, image(), note))
        else:
            log.info("report: nothing to draw for %r, the image is skipped", title)

    counts = diagnostics.code_counts
    draw("codes", "Code utilization per modality", counts, lambda: code_utilization_curves(counts))
    load = diagnostics.expert_load
    white = "White: an expert that never got a token."
    draw("experts", "Expert load per modality and layer", load, lambda: expert_heat_map(load), white)
    terms = _training_terms(history)
    draw("losses", "Training terms by stage", terms, lambda: loss_curves(history, terms))
    return plots


def _training_terms(history: Sequence[Row]) -> list[str]:
    names: set[str] = set()
    for row in history:
        names.update(name for name in row if name.startswith("train/"))
    return sorted(names)


def _plot(name: str, title: str, source: str, note: str) -> Plot:
    """What the template shows; `source` is a data URI."""
    return {"name": name, "title": title, "source": source, "note": note}


def _similarities(found: _Retrieved) -> tuple[np.ndarray, np.ndarray]:
    """Of matched pairs (P,), at most `MOST_PAIRS`, and of the same items with others (R,), R <= P."""
    generator = np.random.default_rng(0)
    a, b = found.a, found.b
    pairs = found.pairs()
    pairs = pairs[generator.permutation(len(pairs))[:MOST_PAIRS]]
    other = generator.integers(0, len(b.ids), len(pairs))
    apart = b.ids[other] != a.ids[pairs[:, 0]]
    x = a.vectors[pairs[:, 0]].astype(np.float32)
    matched = (x * b.vectors[pairs[:, 1]]).sum(1)
    unmatched = (x * b.vectors[other]).sum(1)
    return matched, unmatched[apart]
