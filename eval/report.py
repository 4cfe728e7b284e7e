"""`report.html`: what a run did, in one file that opens from disk.

Table with intervals, recall curves, similarities of matched and unmatched pairs, best and worst retrievals as images,
code use, expert load per modality and layer, and the losses by stage. A part whose numbers are absent is skipped and
named in a log line, never drawn empty.
"""

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from numpy.typing import ArrayLike
from PIL import Image

from eval.diagnostics import Utilization, code_utilization, expert_overlap, expert_utilization
from eval.plots import (
    code_utilization_curves,
    expert_heat_map,
    loss_curves,
    photo_uri,
    recall_curves,
    similarity_histogram,
)
from eval.report_template import PAGE
from eval.retrieval import RetrievalResult, matching_pairs, retrieval_both, top_k

log = logging.getLogger(__name__)
CURVE_AT = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500)
Thumbnail = Callable[[int], Image.Image]
Curve = tuple[RetrievalResult, int, float]


def write_report(
    path: Path | str,
    *,
    result: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]] | Path | str,
    embeddings: Mapping[str, ArrayLike],
    captions: Sequence[str],
    thumbnail: Thumbnail,
    code_counts: Mapping[str, ArrayLike],
    expert_load: Mapping[str, ArrayLike],
    title: str = "",
    examples: int = 4,
) -> Path:
    """Write the report of one run and return its path.

    result: a result.json. history: rows of metrics.csv, or its path. embeddings: the arrays of embeddings.npz (image
    (N, D), text (M, D), image_ids, caption_image_ids, maybe audio and audio_image_ids). captions (M,) parallel to text.
    thumbnail: image id -> image. code_counts: modality -> (Q, S); expert_load: modality -> (layers, E).
    Raises ValueError when captions and text differ in number.
    """
    rows = read_history(history) if isinstance(history, (str, Path)) else numeric_rows(history)
    vectors = {name: np.asarray(array) for name, array in embeddings.items()}
    if len(captions) != len(vectors["text"]):
        raise ValueError(f"{len(captions)} captions for {len(vectors['text'])} text vectors: they must run parallel")
    found = _retrieve(vectors)
    codes = {m: np.atleast_2d(np.asarray(c)) for m, c in code_counts.items()}
    experts = {m: np.atleast_2d(np.asarray(c)) for m, c in expert_load.items()}
    page = (
        Environment(autoescape=True)
        .from_string(PAGE)
        .render(
            title=title or Path(path).resolve().parent.name,
            stamp=_stamp(result),
            tables=[_metrics_table(result), *_utilization_tables(codes, experts)],
            plots=_plots(found, vectors, codes, experts, rows),
            cards=[
                _image_cards(vectors, found["image_to_text"][0], captions, thumbnail, examples),
                _text_cards(vectors, found["text_to_image"][0], captions, thumbnail, examples),
            ],
        )
    )
    Path(path).write_text(page, encoding="utf-8")
    return Path(path)


def read_history(path: Path | str) -> list[dict[str, float]]:
    """metrics.csv -> rows of the numbers that are there."""
    with Path(path).open(newline="") as file:
        return numeric_rows(csv.DictReader(file))


def numeric_rows(rows: Any) -> list[dict[str, float]]:
    """Rows without their empty cells and without what is not a number."""
    found = []
    for row in rows:
        kept = {}
        for name, value in row.items():
            try:
                kept[name] = float(value)
            except (TypeError, ValueError):
                continue  # an empty cell: CSV loggers leave one wherever a term was not logged at that step
        found.append({name: value for name, value in kept.items() if np.isfinite(value)})
    return found


def _retrieve(vectors: Mapping[str, np.ndarray]) -> dict[str, Curve]:
    """Every direction at many k, with gallery sizes and matches per query; k beyond the gallery is dropped."""
    ids = {"image": vectors["image_ids"], "text": vectors["caption_image_ids"], "audio": vectors.get("audio_image_ids")}
    found = {}
    for a, b in (("image", "text"), ("audio", "text"), ("image", "audio")):
        if a not in vectors or b not in vectors:
            continue
        of_a, of_b = np.asarray(ids[a]), np.asarray(ids[b])
        keep_a, keep_b = np.isin(of_a, of_b), np.isin(of_b, of_a)
        of_a, of_b = of_a[keep_a], of_b[keep_b]
        pairs, ks = len(matching_pairs(of_a, of_b)), [k for k in CURVE_AT if k <= min(len(of_a), len(of_b))]
        forward, backward = retrieval_both(vectors[a][keep_a], vectors[b][keep_b], of_a, of_b, ks)
        found[f"{a}_to_{b}"] = (forward, len(of_b), pairs / len(of_a))
        found[f"{b}_to_{a}"] = (backward, len(of_a), pairs / len(of_b))
    return found


def _stamp(result: Mapping[str, Any]) -> list[str]:
    protocol = result.get("protocol", {})
    stamps = protocol if protocol and all(isinstance(v, Mapping) for v in protocol.values()) else {"": protocol}
    lines = [
        "Protocol: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in stamp.items())
        for stamp in stamps.values()
        if stamp
    ]
    facts = {
        "parameters_total": "parameters",
        "parameters_active": "active per token",
        "seconds": "seconds",
        "hardware": "hardware",
        "commit": "commit",
        "seed": "seed",
    }
    shown = [
        f"{label} {result[key]:,}" if isinstance(result[key], (int, float)) else f"{label} {result[key]}"
        for key, label in facts.items()
        if key in result
    ]
    return [*lines, " · ".join(shown)]


def _metrics_table(result: Mapping[str, Any]) -> dict[str, Any]:
    """Measures as columns, directions (whatever stands before the last slash) as rows."""
    metrics, intervals = result.get("metrics", {}), result.get("intervals", {})
    groups: dict[str, dict[str, str]] = {}
    for name in metrics:
        group, _, measure = name.rpartition("/")
        if group.split("/")[0] in ("codes", "experts"):
            continue  # the tables of use show them
        groups.setdefault(group or "overall", {})[measure] = name
    heads = [m for m in dict.fromkeys(m for g in groups.values() for m in g) if not m.startswith("true_recall")]
    rows = []
    for group, names in groups.items():
        cells = [{"value": group.replace("_", " ")}]
        cells += [_cell(metrics, intervals, names.get(head)) for head in heads]
        rows.append(cells)
    return {
        "title": "Measures, with 95 % intervals",
        "heads": ["", *heads],
        "rows": rows,
        "note": "Recalls in percent. Intervals are bootstraps over images. True recalls are in result.json.",
    }


def _cell(metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]], name: str | None) -> dict[str, str]:
    if name is None:
        return {"value": ""}
    small = "{:.1f}–{:.1f}".format(*intervals[name]) if name in intervals else ""
    return {"value": f"{metrics[name]:.2f}", "small": small}


def _utilization_tables(codes: Mapping[str, np.ndarray], experts: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    tables = []
    for title, uses, part, note in (
        ("Codes in use", code_utilization(codes) if codes else {}, "quantizer", ""),
        (
            "Experts in use",
            expert_utilization(experts) if experts else {},
            "layer",
            "Shared routing mass: " + ", ".join(f"{k} {v:.2f}" for k, v in expert_overlap(experts).items()),
        ),
    ):
        if not uses:
            log.info("report: no counts for %r, the table is skipped", title)
            continue
        tables.append(
            {
                "title": title,
                "heads": ["", "size", "dead", "used %", "perplexity", "peak / mean"],
                "rows": [_utilization_row(f"{m}, {part} {i}", u) for m, us in uses.items() for i, u in enumerate(us)],
                "note": note if part == "layer" and len(experts) > 1 else "",
            }
        )
    return tables


def _utilization_row(name: str, found: Utilization) -> list[dict[str, str]]:
    values = (name, found.size, found.dead, f"{found.used:.1f}", f"{found.perplexity:.1f}", f"{found.peak:.1f}")
    return [{"value": str(value)} for value in values]


def _plots(
    found: Mapping[str, Curve],
    vectors: Mapping[str, np.ndarray],
    codes: Mapping[str, np.ndarray],
    experts: Mapping[str, np.ndarray],
    rows: Sequence[Mapping[str, float]],
) -> list[dict[str, str]]:
    plots = [
        ("recall", "Recall curves", recall_curves(found), "Dotted: chance."),
        (
            "similarity",
            "Similarity of matched and unmatched pairs",
            similarity_histogram(*_similarities(vectors)),
            "Unmatched pairs are drawn at random, as many as matched ones.",
        ),
    ]
    terms = sorted({name for row in rows for name in row if name.startswith("train/")})
    drawn = {
        "codes": (codes, "Code use per modality", lambda: code_utilization_curves(codes), ""),
        "experts": (
            experts,
            "Expert load per modality and layer",
            lambda: expert_heat_map(experts),
            "White: an expert that never got a token.",
        ),
        "losses": (terms, "Training terms by stage", lambda: loss_curves(rows, terms), ""),
    }
    for name, (numbers, title, draw, note) in drawn.items():
        if len(numbers):
            plots.append((name, title, draw(), note))
        else:
            log.info("report: nothing to draw for %r, the image is skipped", title)
    return [dict(zip(("name", "title", "source", "note"), plot, strict=True)) for plot in plots]


def _similarities(vectors: Mapping[str, np.ndarray], limit: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    pairs = matching_pairs(vectors["image_ids"].astype(np.int64), vectors["caption_image_ids"].astype(np.int64))
    pairs = pairs[generator.permutation(len(pairs))[:limit]]
    other = generator.integers(0, len(vectors["text"]), len(pairs))
    apart = vectors["caption_image_ids"][other] != vectors["image_ids"][pairs[:, 0]]
    image = vectors["image"][pairs[:, 0]].astype(np.float32)
    matched = (image * vectors["text"][pairs[:, 1]]).sum(1)
    return matched, (image * vectors["text"][other]).sum(1)[apart]


def _extremes(result: RetrievalResult, margins: np.ndarray, count: int) -> list[tuple[int, bool]]:
    """Positions of the best queries (rank 1 by the widest margin) and the worst (largest rank), without repeats."""
    order = np.lexsort((-margins, result.ranks))
    best = order[:count].tolist()
    worst = [q for q in order[::-1][:count].tolist() if q not in best]
    return [(q, True) for q in best] + [(q, False) for q in worst]


def _image_cards(
    vectors: Mapping[str, np.ndarray],
    result: RetrievalResult,
    captions: Sequence[str],
    thumbnail: Thumbnail,
    examples: int,
) -> dict[str, Any]:
    scores, where = (t.numpy() for t in top_k(vectors["image"], vectors["text"], min(5, len(captions))))
    cards = []
    for query, good in _extremes(result, scores[:, 0] - scores[:, -1], examples):
        image_id = int(vectors["image_ids"][query])
        texts = [
            {"text": captions[at], "right": int(vectors["caption_image_ids"][at]) == image_id, "score": f"{s:.3f}"}
            for at, s in zip(where[query], scores[query], strict=True)
        ]
        cards.append(
            {
                "picture": photo_uri(thumbnail(image_id)),
                "query": f"image {image_id}",
                "good": good,
                "rank": f"{result.ranks[query]:g}",
                "texts": texts,
            }
        )
    return {
        "title": "Image to text: best and worst",
        "cards": cards,
        "note": "Green: found first, by the widest margin. Red: the first match stands lowest. Top five captions.",
    }


def _text_cards(
    vectors: Mapping[str, np.ndarray],
    result: RetrievalResult,
    captions: Sequence[str],
    thumbnail: Thumbnail,
    examples: int,
) -> dict[str, Any]:
    scores, where = (t.numpy() for t in top_k(vectors["text"], vectors["image"], min(4, len(vectors["image"]))))
    cards = []
    for query, good in _extremes(result, scores[:, 0] - scores[:, min(1, scores.shape[1] - 1)], examples):
        own = int(vectors["caption_image_ids"][query])
        pictures = [
            {
                "source": photo_uri(thumbnail(int(vectors["image_ids"][at])), 120),
                "score": f"{s:.3f}",
                "right": int(vectors["image_ids"][at]) == own,
            }
            for at, s in zip(where[query], scores[query], strict=True)
        ]
        cards.append(
            {
                "picture": photo_uri(thumbnail(own)),
                "query": captions[query],
                "good": good,
                "rank": f"{result.ranks[query]:g}",
                "pictures": pictures,
            }
        )
    return {
        "title": "Text to image: best and worst",
        "cards": cards,
        "note": "The large image is the caption's own; below it the four images that were retrieved.",
    }
