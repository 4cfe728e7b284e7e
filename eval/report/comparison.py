"""The report of a comparison: runs side by side, each against the first, and the queries on which they differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from eval.compare import SIGNIFICANT, ComparedRun
from eval.report.cards import Examples, Retrieved, Side, shown_item, shown_query, sides_of
from eval.report.charts import arrow
from eval.report.markup import (
    Cell,
    Section,
    Table,
    card,
    facts,
    figure,
    found,
    grid,
    joined,
    note,
    page,
    subheading,
    table,
    verdict,
)
from eval.report.svg import intervals
from eval.report.tables import chance_at
from eval.retrieval import RetrievalResult, retrieval_both

Difference = Mapping[str, Any]
"""A row of what `eval.compare.compare` finds."""
COUNT = 3
"""Queries that are shown where a run gained, and as many where it lost."""
DEPTH = {"text": 2, "image": 3}
"""Retrieved items that a card shows of either run, by their modality."""
TEN = 10


@dataclass(frozen=True)
class Ranked:
    """One direction of a run: what asks what, and the rank of the first match of each query."""

    asking: Side
    asked: Side
    result: RetrievalResult

    @property
    def ranks(self) -> np.ndarray:
        """(Q,)."""
        return self.result.ranks


def write_comparison(
    path: Path,
    runs: Sequence[ComparedRun],
    differences: Sequence[Difference],
    examples: Examples | None,
    absent: str = "",
) -> Path:
    """Write the report of runs that were evaluated on the same items.

    Args:
        path: of the report.
        runs: the first is what the others are compared with.
        differences: of the others to it, as `eval.compare.compare` finds them.
        examples: captions parallel to the runs' text vectors, and images; None where the data is not there.
        absent: why there are no examples.

    Returns:
        the path.
    """
    short = short_names(runs)
    runs = [replace(run, name=short[run.name]) for run in runs]
    differences = [{**row, "run": short[row["run"]]} for row in differences]
    base, *others = runs
    title = " against ".join([", ".join(run.name for run in others), base.name])
    sentences = [sentence(run.name, base.name, _of(differences, run)) for run in others]
    for run in others:
        sentences += reasons(run.name, _of(differences, run))
    sentences.append(f"Evaluated on {base.protocol}, by embeddings alone.")
    tones = [_tone(_of(differences, run)) for run in others]
    lead = verdict(sentences, tones[0] if len(others) == 1 else "open")
    lead += facts([(run.name, f"trunks have seen {run.protocol.pretraining}") for run in runs])
    sections = [_figures(runs), _differences(differences, others, base)]
    ranked = {run.name: directions_of(run) for run in runs}
    for number, run in enumerate(others, 1):
        sections.append(_queries(number, base.name, run.name, ranked, examples))
    if examples is None:
        body = Markup("<p>{}</p>").format(f"The queries in words and images: {absent}.")
        sections.append(Section("absent", "What is not shown", body))
    path.write_text(page(title, lead, sections), encoding="utf-8")
    return path


def short_names(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """Each run's name -> the last part of its path, where that tells them apart."""
    last = {run.name: Path(run.name).name for run in runs}
    return last if len(set(last.values())) == len(runs) else {run.name: run.name for run in runs}


def sentence(name: str, base: str, differences: Sequence[Difference]) -> str:
    """Whether a run is better or worse than the first, and in how many recalls."""
    better = [row for row in differences if row["p"] < SIGNIFICANT and row["difference"] > 0]
    worse = [row for row in differences if row["p"] < SIGNIFICANT and row["difference"] < 0]
    count = len(differences)
    if better and worse:
        return f"{name} is better than {base} in {len(better)} and worse in {len(worse)} of {count} recalls."
    if better:
        return f"{name} is better than {base} in {len(better)} of {count} recalls."
    if worse:
        return f"{name} is worse than {base} in {len(worse)} of {count} recalls."
    return f"{name} and {base} do not differ in any of {count} recalls that these items can tell apart."


def reasons(name: str, differences: Sequence[Difference]) -> list[str]:
    """The differences of a run at R@1, and the clearest one."""
    clearest = min(differences, key=lambda row: row["p"])
    shown = [row for row in differences if row["measure"].endswith("/R@1") or row is clearest]
    said = []
    for row in shown:
        direction, _, recall = row["measure"].partition("/")
        told = "" if row["p"] < SIGNIFICANT else ", no difference that can be told"
        said.append(
            f"{name}, {arrow(direction)} {recall}: {row['difference']:+.1f} points (95 % interval {row['low']:+.1f} to"
            f" {row['high']:+.1f}, p {row['p']:.2g}{told})."
        )
    return said


def _tone(differences: Sequence[Difference]) -> str:
    signs = {row["difference"] > 0 for row in differences if row["p"] < SIGNIFICANT}
    return "open" if len(signs) != 1 else "good" if signs.pop() else "bad"


def _of(differences: Sequence[Difference], run: ComparedRun) -> list[Difference]:
    return [row for row in differences if row["run"] == run.name]


def _figures(runs: Sequence[ComparedRun]) -> Section:
    """A row for each recall, a column for each run, and chance."""
    rows = [run.row() for run in runs]
    cells = []
    for measure in rows[0].metrics:
        direction, _, recall = measure.partition("/")
        line = [Cell(f"{arrow(direction)} {recall}")]
        for row in rows:
            low, high = row.intervals[measure]
            line.append(Cell(f"{row.metrics[measure]:.1f}", f"{low:.1f}–{high:.1f}"))
        chance = chance_at(row.protocol, direction, int(recall.removeprefix("R@")))
        cells.append([*line, Cell("–" if math.isnan(chance) else f"{chance:.1f}")])
    heads = ["any-hit recall, %", *(run.name for run in runs), "chance"]
    content = Table(str(runs[0].protocol), heads, cells, "Small print: 95 % intervals, bootstraps over images.")
    return Section("figures", "Figures, with chance", table(content))


def _differences(differences: Sequence[Difference], others: Sequence[ComparedRun], base: ComparedRun) -> Section:
    """Differences with their intervals, drawn and in a table."""
    plots = []
    rows = []
    for run in others:
        drawn = []
        for row in _of(differences, run):
            direction, _, recall = row["measure"].partition("/")
            name = f"{arrow(direction)} {recall}"
            drawn.append((name, row["difference"], row["low"], row["high"], 0.0))
            star = "*" if row["p"] < SIGNIFICANT else ""
            span = f"{row['low']:+.1f} to {row['high']:+.1f}"
            rows.append(
                [Cell(f"{run.name}, {name}"), Cell(f"{row['difference']:+.2f}", span), Cell(f"{row['p']:.4f}{star}")]
            )
        summary = f"{run.name} against {base.name}: " + "; ".join(f"{each[0]} {each[1]:+.1f}" for each in drawn)
        plots.append(figure(intervals(drawn, summary=summary, unit="points"), f"{run.name} against {base.name}"))
    words = (
        "Paired over images; p by sign-flip permutation, * below 0.05. Right of the mark: better than the first run."
    )
    content = Table(f"Difference to {base.name}, in points", ["", "difference", "p"], rows, words)
    return Section("differences", f"Difference to {base.name}", joined([grid(plots, "plots"), table(content)]))


def directions_of(run: ComparedRun) -> dict[str, Ranked]:
    """Both directions of images and captions, query by query."""
    embeddings = run.embeddings
    vectors = {
        "image": embeddings.image,
        "text": embeddings.text,
        "image_ids": embeddings.image_ids,
        "caption_image_ids": embeddings.caption_image_ids,
    }
    sides = sides_of(vectors, "image", "text")
    assert sides is not None  # of embeddings that were compared
    image, text = sides
    forward, backward = retrieval_both(image.vectors, text.vectors, image.ids, text.ids)
    return {"image_to_text": Ranked(image, text, forward), "text_to_image": Ranked(text, image, backward)}


def _queries(
    number: int, base: str, name: str, ranked: Mapping[str, Mapping[str, Ranked]], examples: Examples | None
) -> Section:
    """How many queries either run finds alone, and those on which the two differ most."""
    parts = []
    taken: set[int] = set()
    for direction, before in ranked[base].items():
        after = ranked[name][direction]
        parts += [subheading(arrow(direction)), table(_crossed(base, name, before.ranks, after.ranks))]
        if examples is None:
            continue
        cards = []
        for gained in (True, False):
            for position in differing(before, after, gained, taken):
                cards.append(_card((base, before), (name, after), position, examples, "good" if gained else "bad"))
        parts.append(grid(cards) if cards else note("No query is found better by one of the two."))
    words = f"Green: queries for which {name} finds a match far earlier than {base}; red: far later. No image twice."
    return Section(f"queries-{number}", f"Queries on which {name} and {base} differ", joined(parts), words)


def _crossed(base: str, name: str, before: np.ndarray, after: np.ndarray) -> Table:
    """Queries by who finds a match first, and within the first ten."""
    rows = []
    for depth, label in ((1, "at rank 1"), (TEN, f"within the first {TEN}")):
        a, b = before <= depth, after <= depth
        counts = [(a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()]
        rows.append([Cell(label), *(Cell(f"{int(count):,}") for count in counts)])
    heads = ["a match found", "by both", f"by {base} alone", f"by {name} alone", "by neither"]
    return Table(f"{len(before):,} queries", heads, rows)


def differing(before: Ranked, after: Ranked, gained: bool, taken: set[int]) -> list[int]:
    """Positions of the queries whose rank changes by the largest factor, of different images.

    Args:
        before: by the first run.
        after: by the other one.
        gained: whether the other one finds a match earlier, or later.
        taken: ids of images that are passed over; those that are chosen are added.
    """
    factor = np.log(before.ranks) - np.log(after.ranks)
    change = factor if gained else -factor
    found_: list[int] = []
    for position in np.argsort(-change, kind="stable").tolist():
        own = int(before.asking.ids[position])
        if len(found_) == COUNT or change[position] <= 0:
            break
        if own not in taken:
            taken.add(own)
            found_.append(position)
    return found_


def _card(
    before: tuple[str, Ranked], after: tuple[str, Ranked], position: int, examples: Examples, tone: str
) -> Markup:
    """A query, and what either run retrieves."""
    parts = [shown_query(before[1].asking, position, examples)]
    for name, ranked in (before, after):
        query = replace(ranked.asking, vectors=ranked.asking.vectors[position : position + 1])
        depth = min(DEPTH[ranked.asked.modality], len(ranked.asked.ids))
        best = Retrieved.of(query.vectors, ranked.asked.vectors, depth)
        own = int(ranked.asking.ids[position])
        items = [shown_item(ranked.asked, at, score, own, examples) for at, score in best.of_query(0)]
        parts.append(note(f"{name}: first match at rank {ranked.ranks[position]:,.7g}"))
        parts.append(found(items, images=ranked.asked.modality == "image"))
    ranks = f"{before[1].ranks[position]:,.7g} → {after[1].ranks[position]:,.7g}"
    return card(f"rank {ranks}", joined(parts), tone)
