"""The tables of `eval.report`, as the template takes them: title, heads, rows of cells, note."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.diagnostics import Diagnostics, Utilization, code_utilization, expert_overlap, expert_utilization

log = logging.getLogger(__name__)
UTILIZATION_HEADS = ["", "size", "dead", "used %", "perplexity", "peak / mean"]
Cell = dict[str, str]
"""`value` and, in small print, `small`."""
EMPTY: Cell = {"value": ""}


def metrics_table(result: Mapping[str, Any]) -> dict[str, Any]:
    """Measures as columns, directions (whatever stands before the last slash) as rows.

    Args:
        result: a result.json.
    """
    groups = _by_direction(result["metrics"])
    heads: dict[str, None] = {}
    for measures in groups.values():
        heads |= dict.fromkeys(measures)
    shown = [head for head in heads if not head.startswith("true_recall")]
    rows = []
    for group, measures in groups.items():
        cells = [{"value": group.replace("_", " ")}]
        for head in shown:
            name = measures.get(head)
            cells.append(_cell(result, name) if name else EMPTY)
        rows.append(cells)
    return {
        "title": "Measures, with 95 % intervals",
        "heads": ["", *shown],
        "rows": rows,
        "note": "Recalls in percent. Intervals are bootstraps over images. True recalls are in result.json.",
    }


def _by_direction(metrics: Mapping[str, float]) -> dict[str, dict[str, str]]:
    """Direction -> measure -> name of the metric, without utilization, which has tables of its own."""
    groups: dict[str, dict[str, str]] = {}
    for name in metrics:
        group, _, measure = name.rpartition("/")
        kind, _, _ = group.partition("/")
        if kind in ("codes", "experts"):
            continue
        measures = groups.setdefault(group or "overall", {})
        measures[measure] = name
    return groups


def _cell(result: Mapping[str, Any], name: str) -> Cell:
    """A metric with its interval in small print."""
    value = result["metrics"][name]
    cell = {"value": f"{value:.2f}", "small": ""}
    if name in result["intervals"]:
        low, high = result["intervals"][name]
        cell["small"] = f"{low:.1f}–{high:.1f}"
    return cell


def utilization_tables(diagnostics: Diagnostics) -> list[dict[str, Any]]:
    """Of codes and of experts; one without counts is skipped and named in a log line."""
    codes = _utilization_rows(code_utilization(diagnostics.code_counts), "quantizer")
    experts = _utilization_rows(expert_utilization(diagnostics.expert_load), "layer")
    shared = _shared_routing(diagnostics.expert_load)
    tables = []
    for title, rows, note in (("Codes in use", codes, ""), ("Experts in use", experts, shared)):
        if rows:
            table = {"title": title, "heads": UTILIZATION_HEADS, "rows": rows, "note": note}
            tables.append(table)
        else:
            log.info("report: no counts for %r, the table is skipped", title)
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
            rows.append([{"value": cell} for cell in cells])
    return rows
