"""The plots of an evaluation: recalls, similarities, use of codes, load of experts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from eval.measures import random_recall
from eval.report.markup import figure, image, joined, key, note
from eval.report.media import tint
from eval.report.svg import Area, Axis, Line, panel
from eval.retrieval import RetrievalResult

BINS = 48
"""Of a histogram."""
HEAT_COLOUR = (46, 134, 222)
"""Of expert load: dark enough on white, light enough on black."""


@dataclass(frozen=True)
class Curve:
    """One direction of retrieval at many depths."""

    result: RetrievalResult
    gallery: int
    """Items of the gallery."""
    matches: float
    """Matches a query."""

    def chance(self, k: int) -> float:
        """Any-hit R@k of a random ranking, in percent."""
        return random_recall(k, self.gallery, self.matches)


def arrow(direction: str) -> str:
    """`image_to_text` as `image → text`."""
    return direction.replace("_to_", " → ")


def recall_plots(pairs: Sequence[Mapping[str, Curve]]) -> list[Markup]:
    """R@k against k, one figure a pair of modalities; dotted: chance.

    Args:
        pairs: the directions of each by name, such as `image_to_text`.
    """
    figures = []
    for curves in pairs:
        lines = []
        keys = []
        said = []
        for colour, (name, curve) in enumerate(curves.items()):
            ks = curve.result.ks
            lines.append(Line([(k, curve.chance(k)) for k in ks], colour, True))
            lines.append(Line([(k, curve.result.recall(k)) for k in ks], colour))
            keys.append((arrow(name), colour))
            said.append(f"{arrow(name)}: {curve.result.recall(ks[0]):.1f} % at {ks[0]}")
        plot = panel(lines, Axis("k", log=True), Axis("R@k, %", low=0, high=100), summary=", ".join(said))
        figures.append(figure(plot, key(keys)))
    return figures


def similarity_plot(matched: np.ndarray, unmatched: np.ndarray, names: str) -> Markup:
    """Densities of similarities.

    Args:
        matched: (P,) of matched pairs.
        unmatched: (R,) of random unmatched pairs, as many; a single image has none.
        names: of what is similar.
    """
    both = np.concatenate([matched, unmatched])
    low, high = float(both.min()), float(both.max())
    if high == low:
        low, high = low - 1e-3, high + 1e-3
    edges = np.linspace(low, high, BINS + 1)
    areas = []
    keys = []
    for name, values, colour in (("unmatched", unmatched, 5), ("matched", matched, 0)):
        if len(values):
            heights, _ = np.histogram(values, edges, density=True)
            areas.append(Area(edges.tolist(), heights.tolist(), colour))
            keys.append((name, colour))
    summary = f"similarity of matched pairs {matched.mean():.2f} on average"
    if len(unmatched):
        summary += f", of unmatched ones {unmatched.mean():.2f}"
    return figure(panel(areas, Axis(f"similarity of {names}"), Axis("density", low=0), summary=summary), key(keys))


def code_plot(counts: Mapping[str, np.ndarray]) -> Markup:
    """Share of each code, most used first; the first quantizer of each modality, others dotted.

    Args:
        counts: modality -> (Q, S), how often each of S codes of Q quantizers was taken.
    """
    lines = []
    keys = []
    said = []
    for colour, (modality, rows) in enumerate(counts.items()):
        for index, row in enumerate(np.atleast_2d(rows)):
            share = np.sort(row)[::-1] / max(row.sum(), 1)
            points = [(float(place), float(value)) for place, value in enumerate(share, 1) if value > 0]
            lines.append(Line(points, colour, dotted=index > 0))
            said.append(f"{modality}: {len(points)} of {len(row)} codes in use")
        keys.append((modality, colour))
    x = Axis("code, most used first", log=True)
    return figure(panel(lines, x, Axis("share of tokens", log=True), summary="; ".join(said)), key(keys))


def expert_plot(load: Mapping[str, np.ndarray]) -> Markup:
    """Share of each layer's tokens that each expert took: a strip for each modality, a row for each layer.

    Args:
        load: modality -> (layers, E), how many tokens each expert took.
    """
    shares = {}
    for modality, found in load.items():
        tokens = np.atleast_2d(found)
        shares[modality] = tokens / np.maximum(tokens.sum(1, keepdims=True), 1e-12)
    # The scale is shared, and a few experts that take most of a layer do not make the others invisible.
    top = max(float(np.quantile(share, 0.99)) for share in shares.values()) or 1.0
    strips = []
    for modality, share in shares.items():
        dead = int((share.sum(0) == 0).sum())
        alt = f"{modality}: load of {share.shape[1]} experts in {len(share)} layers, {dead} never used"
        # A root lifts small shares: an expert that is rarely used is told from one that is not.
        strips.append(Markup("<span>{}</span>{}").format(modality, image(tint(np.sqrt(share / top), HEAT_COLOUR), alt)))
    body = Markup('<div class="heat">{}</div>').format(joined(strips))
    return figure(body) + note("Experts from left to right, layers from top to bottom. Empty: never got a token.")
