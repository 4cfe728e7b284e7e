"""The report's images, each a function from numbers to a PNG data URI. No global matplotlib state is touched."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from eval.retrieval import RetrievalResult

COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#9a6700", "#8250df", "#57606a")
UNMATCHED_COLOUR = COLOURS[5]
STAGE_COLOUR = "#d8dee4"
FEW_POINTS = 20
"""A curve of fewer points has a dot at each."""


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
        missed = 1 - min(k / self.gallery, 1)
        return 100 * (1 - missed**self.matches)


def png_uri(figure: Figure, dpi: int = 110) -> str:
    """A matplotlib figure as `data:image/png;base64,...`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return _data_uri(buffer, "image/png")


def photo_uri(image: Image.Image, side: int = 240) -> str:
    """An image, shrunk to at most `side` pixels, as a JPEG data URI."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=82)
    return _data_uri(buffer, "image/jpeg")


def _data_uri(content: io.BytesIO, kind: str) -> str:
    encoded = base64.b64encode(content.getvalue())
    return f"data:{kind};base64,{encoded.decode()}"


def recall_curves(directions: Mapping[str, Curve]) -> str:
    """R@k against k; dots: chance.

    Args:
        directions: by name, such as `image_to_text`.
    """
    figure, axes = _figure(6.4, 3.6)
    for colour, (name, curve) in zip(COLOURS, directions.items(), strict=False):
        ks = curve.result.ks
        recalls = [curve.result.recall(k) for k in ks]
        chance = [curve.chance(k) for k in ks]
        label = name.replace("_", " ")
        axes.plot(ks, recalls, color=colour, label=label)
        axes.plot(ks, chance, color=colour, linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="k", ylabel="R@k, any hit (%)", ylim=(0, 101))
    _legend_beside(axes, "medium")
    return png_uri(figure)


def similarity_histogram(matched: np.ndarray, unmatched: np.ndarray) -> str:
    """Densities of similarities.

    Args:
        matched: (P,) of matched pairs.
        unmatched: (R,) of random unmatched pairs; a single image has none.
    """
    figure, axes = _figure(6.4, 3.2)
    both = np.concatenate([matched, unmatched])
    low, high = float(both.min()), float(both.max())
    if high == low:
        high = low + 1e-3
    bins = np.linspace(low, high, 70).tolist()
    if len(unmatched):
        axes.hist(unmatched, bins=bins, density=True, alpha=0.6, label="unmatched", color=UNMATCHED_COLOUR)
    axes.hist(matched, bins=bins, density=True, alpha=0.6, label="matched", color=COLOURS[0])
    axes.set(xlabel="similarity", ylabel="density")
    axes.legend(frameon=False)
    return png_uri(figure)


def code_utilization_curves(counts: Mapping[str, np.ndarray]) -> str:
    """Share of each code, most used first, one line per quantizer, the first the darkest.

    Args:
        counts: modality -> (Q, S), how often each of S codes of Q quantizers was taken.
    """
    figure, axes = _figure(6.4, 3.2)
    for colour, (modality, rows) in zip(COLOURS, counts.items(), strict=False):
        for index, row in enumerate(np.atleast_2d(rows)):
            most_first = np.sort(row)[::-1]
            share = most_first / max(row.sum(), 1)
            place = np.arange(1, len(share) + 1)
            drawn = _blank_zeros(share)
            darkness = 1 / (1 + 0.5 * index)
            label = modality if index == 0 else None
            axes.plot(place, drawn, color=colour, alpha=darkness, label=label)
    used = any(np.any(rows) for rows in counts.values())
    # A logarithmic axis of no value cannot be drawn.
    axes.set(xscale="log", yscale="log" if used else "linear", xlabel="code, most used first", ylabel="share of tokens")
    axes.legend(frameon=False)
    return png_uri(figure)


def expert_heat_map(load: Mapping[str, np.ndarray]) -> str:
    """Share of each layer's tokens that each expert took, one panel per modality, rows are layers.

    Args:
        load: modality -> (layers, E), how many tokens each expert took.
    """
    shares = {}
    for modality, found in load.items():
        tokens = np.atleast_2d(found)
        of_layer = tokens.sum(1, keepdims=True)
        shares[modality] = tokens / np.maximum(of_layer, 1e-12)
    layers = max(len(share) for share in shares.values())
    height = 0.8 + 0.24 * layers
    figure = Figure(figsize=(8.6, len(load) * height), layout="constrained")
    panels = figure.subplots(len(load), 1, squeeze=False, sharex=True)[:, 0]
    top = max(float(np.quantile(share, 0.999)) for share in shares.values())
    for axes, (modality, share) in zip(panels, shares.items(), strict=True):
        # Dead experts are white, so that they can be seen whatever the scale.
        drawn = _blank_zeros(share)
        image = axes.imshow(drawn, aspect="auto", cmap="viridis", vmin=0, vmax=top, interpolation="nearest")
        axes.set(ylabel=f"{modality}\nlayer", yticks=range(len(share)))
        figure.colorbar(image, ax=axes, pad=0.01)
    panels[-1].set_xlabel("expert")
    return png_uri(figure)


def _blank_zeros(shares: np.ndarray) -> np.ndarray:
    """NaN, which is not drawn, for zeros."""
    return np.where(shares > 0, shares, np.nan)


def loss_curves(history: Sequence[Mapping[str, float]], terms: Sequence[str]) -> str:
    """Training terms against the step; shaded bands are the stages of the schedule.

    The axis is logarithmic where all values are positive.

    Args:
        history: rows of metrics.csv.
        terms: the columns that are drawn.
    """
    figure, axes = _figure(8.6, 3.8)
    lowest = []
    for index, term in enumerate(terms):
        rows = [row for row in history if term in row]
        lowest += [row[term] for row in rows]
        points = [(row["step"], row[term]) for row in rows if "step" in row]
        if points:
            _plot_term(axes, index, term, points)
    _shade_stages(axes, history)
    positive = bool(lowest) and min(lowest) > 0
    axes.set(xlabel="step", ylabel="loss", yscale="log" if positive else "linear")
    _legend_beside(axes, 8)
    return png_uri(figure)


def _plot_term(axes: Axes, index: int, term: str, points: Sequence[tuple[float, float]]) -> None:
    """One line; beyond the colours it is dashed.

    Args:
        axes: of the curves.
        index: of the term among all.
        term: its name.
        points: (step, value).
    """
    steps, values = np.array(points).T
    style = "-" if index < len(COLOURS) else "--"
    marker = "o" if len(points) < FEW_POINTS else None
    label = term.removeprefix("train/")
    colour = COLOURS[index % len(COLOURS)]
    axes.plot(steps, values, style, color=colour, linewidth=1.2, marker=marker, markersize=3, label=label)


def _shade_stages(axes: Axes, history: Sequence[Mapping[str, float]]) -> None:
    """A band with its number from the first to the last step of each stage."""
    steps: dict[float, list[float]] = {}
    for row in history:
        if "stage" in row and "step" in row:
            steps.setdefault(row["stage"], []).append(row["step"])
    for stage in sorted(steps):
        begin = min(steps[stage])
        end = max(steps[stage])
        darkness = 0.25 + 0.3 * (int(stage) % 2)
        axes.axvspan(begin, end, color=STAGE_COLOUR, alpha=darkness, linewidth=0)
        above = axes.get_xaxis_transform()
        axes.text(begin, 1.01, f"stage {stage:g}", transform=above, fontsize=8)


def _legend_beside(axes: Axes, fontsize: int | str) -> None:
    """To the right of the axes."""
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=fontsize)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Inches -> a figure with one pair of axes, open at the top and right."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes
