"""`report.html` of a run or of an evaluation: what to think of it, and what that rests on, in one file.

A part whose numbers or data are absent is not drawn empty: a list at the end says what is not shown, and why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from eval.figures import Figures, first_protocol, split_figures
from eval.report.cards import Examples, Side, gallery_of, sides_of
from eval.report.charts import Curve, arrow, code_plot, expert_plot, recall_plots, similarity_plot
from eval.report.exhibits import Exhibits, Material
from eval.report.galleries import attention_maps, code_maps, reconstructions
from eval.report.history import TRAIN, VALIDATION, Row, columns, multiples, stage_bands, validation_plots
from eval.report.markup import (
    Section,
    Text,
    facts,
    figure,
    folded,
    grid,
    joined,
    page,
    table,
    verdict,
)
from eval.report.svg import Band, intervals
from eval.report.tables import CODES, EXPERTS, Baseline, chance_at, other_table, retrieval_table, utilization_tables
from eval.report.verdict import retrieval_verdict
from eval.retrieval import RetrievalResult, matching_pairs, retrieval_both

CURVE_AT = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500)
PAIRS = (("image", "text"), ("audio", "text"), ("image", "audio"))
"""The first of them that a run has is shown by examples."""
FACTS = {
    "evaluated": "evaluated",
    "parameters_total": "parameters",
    "parameters_active": "active per token",
    "seconds": "seconds",
    "hardware": "hardware",
    "commit": "commit",
    "seed": "seed",
}
"""Field of a result.json -> what the report calls it."""
FURTHER = 2
"""Best, usual and worst audio clips, this many each, beside the first pair's examples."""
MOST_PAIRS = 20_000
"""Matched pairs of the histogram."""
STEP_COLUMNS = ("step", "epoch", "stage")
"""Columns of metrics.csv that are not drawn."""


def write_report(
    path: Path,
    *,
    result: Mapping[str, Any],
    material: Material,
    history: Sequence[Row] = (),
    baseline: Baseline | None = None,
    title: str = "",
) -> Path:
    """Write the report of one run or evaluation.

    Args:
        path: of the report.
        result: a result.json.
        material: what else there is to show.
        history: the rows of metrics.csv, see `eval.report.history.read_history`; none of an evaluation.
        baseline: figures of the same protocol to stand beside.
        title: by default the name of the folder.

    Returns:
        the path.

    Raises:
        ValueError: when captions and text vectors differ in number, and where no two modalities share an image.
    """
    vectors = {name: np.asarray(array) for name, array in material.embeddings.items()}
    examples = material.examples
    if examples and "text" in vectors and len(examples.captions) != len(vectors["text"]):
        raise ValueError(
            f"{len(examples.captions)} captions for {len(vectors['text'])} text vectors: they must run parallel"
        )
    retrieved = _retrieve(vectors)
    if vectors and not retrieved:
        raise ValueError(f"nothing to report: no two of {', '.join(vectors)} share an image")
    figures = split_figures(result)
    first = next(iter(figures.values()))
    chances = chances_of(result)
    parts = [_figures_section(figures, chances, baseline), *_retrieval_sections(retrieved, examples, first, chances)]
    parts += [*_exhibit_sections(material.exhibits), *_training_sections(history, chances, result)]
    parts += _use_sections(material)
    absent = _absent(parts, material, history)
    if absent:
        parts.append(absent)
    said = retrieval_verdict(first, chances, baseline, history)
    lead = verdict(said.sentences, said.tone) + facts(_facts(result))
    path.write_text(page(title or path.resolve().parent.name, lead, parts), encoding="utf-8")
    return path


def chances_of(result: Mapping[str, Any]) -> dict[str, float]:
    """R@1 of a random ranking by direction, in percent, as a run's result has it."""
    found = {}
    for name, value in result["metrics"].items():
        if name.startswith("chance/"):
            found[name.split("/")[1]] = value
    return found


def _facts(result: Mapping[str, Any]) -> list[tuple[str, Text]]:
    """What else a result says."""
    shown: list[tuple[str, Text]] = [("trunks have seen", first_protocol(result).pretraining)]
    for field, label in FACTS.items():
        if field in result:
            value = result[field]
            shown.append((label, f"{value:,}" if isinstance(value, int | float) else str(value)))
    return shown


def _figures_section(
    figures: Mapping[str, Figures], chances: Mapping[str, float], baseline: Baseline | None
) -> Section:
    """The first protocol in full, with its recalls drawn; other protocols on demand."""
    first, *others = figures.values()
    shown = _tables(first, chances, baseline)
    if others:
        hidden = [_tables(each, chances if each.protocol.name != first.protocol.name else {}, None) for each in others]
        names = ", ".join(figures)
        shown += folded(f"Other evaluations ({names.partition(', ')[2]})", joined(hidden))
    return Section("figures", "Figures, with chance and a baseline", shown)


def _tables(figures: Figures, chances: Mapping[str, float], baseline: Baseline | None) -> Markup:
    found = [retrieval_table(figures, chances, baseline), other_table(figures)]
    return joined(table(each) for each in found if each)


def _interval_plot(figures: Figures, chances: Mapping[str, float]) -> Markup:
    """R@1 of every direction with its interval, and chance."""
    rows = []
    for name, (low, high) in figures.intervals.items():
        direction, _, measure = name.rpartition("/")
        if measure == "R@1" and "_to_" in direction and "/" not in direction:
            chance = chance_at(figures.protocol, direction, 1, chances.get(direction))
            rows.append((arrow(direction), figures.metrics[name], low, high, chance))
    if not rows:
        return Markup("")
    summary = "; ".join(f"{name} R@1 {value:.1f} %, {low:.1f} to {high:.1f}" for name, value, low, high, _ in rows)
    plot = intervals(rows, summary=summary, unit="R@1, %")
    return figure(plot, "R@1 with 95 % intervals; the upright marks are chance")


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


def _retrieval_sections(
    found: Sequence[_Retrieved], examples: Examples | None, figures: Figures, chances: Mapping[str, float]
) -> list[Section]:
    """Curves and similarities, then examples of the first pair both ways, and of audio to text where there is more."""
    if not found:
        return []
    sections = []
    first = found[0]
    if examples:
        taken: set[int] = set()
        fewer = replace(examples, count=FURTHER)
        groups = [gallery_of(first.a, first.b, first.forward, examples, taken)]
        groups.append(gallery_of(first.b, first.a, first.backward, examples, taken))
        for each in found[1:]:
            if each.a.modality == "audio":
                groups.append(gallery_of(each.a, each.b, each.forward, fewer, taken))
        note = (
            "Best: found first, by the widest margin. Usual: around the median rank. Worst: the first match stands"
            " lowest. No image is asked about twice. ✓ right, ✗ wrong; the number is the similarity."
        )
        sections.append(Section("examples", "Retrieved", joined(groups), note))
    names = f"{first.a.modality} and {first.b.modality}"
    drawn = [_interval_plot(figures, chances), *recall_plots([each.curves() for each in found])]
    drawn.append(similarity_plot(*_similarities(first), names))
    sections.insert(0, Section("recall", "Recall and similarity", grid(drawn, "plots"), "Dotted: chance."))
    return sections


def _exhibit_sections(exhibits: Exhibits) -> list[Section]:
    """Attention, codes and reconstructions, those that there are."""
    sections = []
    if exhibits.attention:
        note = (
            "Cross-modal attention, mean over layers and heads: clear where the word looks, dark where not. ×: its peak"
            " against even attention."
        )
        sections.append(Section("attention", "Where words look", attention_maps(exhibits.attention), note))
    if exhibits.written:
        note = (
            "Captions of the images that it tells from all others best and worst by those of people: clear where each"
            " word looked when it was written."
        )
        body = attention_maps(exhibits.written, "described")
        sections.append(Section("written", "What it writes", body, note))
    if exhibits.code_maps:
        note = "Patches that share a code have its colour and number; those without are alone with theirs here."
        sections.append(Section("code-maps", "Which patches share a code", code_maps(exhibits.code_maps), note))
    if any(exhibits.reconstructions.values()):
        note = "Inputs, and beside or below them what is decoded from their codes: the decoder sees nothing else."
        body = reconstructions(exhibits.reconstructions)
        sections.append(Section("reconstructions", "Reconstructions from codes", body, note))
    return sections


def _training_sections(
    history: Sequence[Row], chances: Mapping[str, float], result: Mapping[str, Any]
) -> list[Section]:
    """Validation, loss terms, and on demand everything else that was logged."""
    bands: list[Band] = stage_bands(result.get("config", {}), history)
    staged = " Bands: stages of the schedule." if bands else ""
    sections = []
    if columns(history, VALIDATION):
        body = validation_plots(history, chances, bands)
        sections.append(Section("validation", "Validation during training", body, f"Dotted: chance.{staged}"))
    terms = columns(history, TRAIN)
    if terms:
        body = multiples(history, terms, bands)
        sections.append(Section("losses", "Training terms", body, f"Each on a scale of its own.{staged}"))
    logged = [name for name in columns(history) if name not in STEP_COLUMNS]
    others = [name for name in logged if not name.startswith((TRAIN, VALIDATION))]
    if others:
        sections.append(Section("logged", "What else was logged", multiples(history, others, bands), "", folded=True))
    return sections


def _use_sections(material: Material) -> list[Section]:
    """Codes and experts."""
    diagnostics = material.diagnostics
    sections = []
    tables = {each.title: table(each) for each in utilization_tables(diagnostics)}
    if diagnostics.code_counts:
        plot = grid([code_plot(diagnostics.code_counts)], "plots")
        sections.append(Section("codes", "Codes in use", joined([plot, tables[CODES]])))
    if diagnostics.expert_load:
        shown = joined([expert_plot(diagnostics.expert_load), tables[EXPERTS]])
        sections.append(Section("experts", "Load of the experts", shown))
    return sections


def _absent(parts: Sequence[Section], material: Material, history: Sequence[Row]) -> Section | None:
    """What is not shown, and why."""
    shown = {part.anchor for part in parts}
    reasons = dict(material.exhibits.absent)
    if "examples" not in shown:
        reasons["Retrieved"] = "the data that was evaluated is not there, only figures or vectors are"
    if not history:
        reasons["Training"] = "this is an evaluation: the run's own report shows how it was trained"
    elif "validation" not in shown:
        reasons["Validation during training"] = "nothing was evaluated between steps (train.evaluate_every)"
    if "codes" not in shown:
        reasons["Codes in use"] = "no code was counted: the model has none, or its vectors alone were evaluated"
    if "experts" not in shown:
        reasons["Load of the experts"] = "no load was counted"
    if not reasons:
        return None
    items = [Markup("<li><b>{}</b>: {}.</li>").format(name, reason) for name, reason in reasons.items()]
    return Section("absent", "What is not shown", Markup('<ul class="left-out">{}</ul>').format(joined(items)))


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
