"""The report's images, each a function from numbers to a PNG data URI. No global matplotlib state is touched."""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from eval.retrieval import RetrievalResult

COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#9a6700", "#8250df", "#57606a")


def png_uri(figure: Figure, dpi: int = 110) -> str:
    """A matplotlib figure as `data:image/png;base64,...`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def photo_uri(picture: Image.Image, side: int = 240) -> str:
    """An image, shrunk to at most `side` pixels, as a JPEG data URI."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def recall_curves(directions: Mapping[str, tuple[RetrievalResult, int, float]]) -> str:
    """R@k against k for each direction -> (result at many k, gallery size, matches per query); dots: chance."""
    figure, axes = _figure(6.4, 3.6)
    for colour, (name, (result, gallery, matches)) in zip(COLOURS, directions.items(), strict=False):
        axes.plot(result.ks, [result.recall(k) for k in result.ks], color=colour, label=name.replace("_", " "))
        chance = [100 * (1 - (1 - min(k / gallery, 1)) ** matches) for k in result.ks]
        axes.plot(result.ks, chance, color=colour, linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="k", ylabel="R@k, any hit (%)", ylim=(0, 101))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return png_uri(figure)


def similarity_histogram(matched: np.ndarray, unmatched: np.ndarray) -> str:
    """Similarities of matched pairs and of random unmatched pairs, as densities."""
    figure, axes = _figure(6.4, 3.2)
    both = np.concatenate([matched, unmatched])
    low, high = float(both.min()), float(both.max())
    bins = np.linspace(low, high if high > low else low + 1e-3, 70).tolist()
    for values, label, colour in ((unmatched, "unmatched", COLOURS[5]), (matched, "matched", COLOURS[0])):
        if len(values):  # a single image has no unmatched pair
            axes.hist(values, bins=bins, density=True, alpha=0.6, label=label, color=colour)
    axes.set(xlabel="similarity", ylabel="density")
    axes.legend(frameon=False)
    return png_uri(figure)


def code_utilization_curves(counts: Mapping[str, np.ndarray]) -> str:
    """Share of each code, most used first, per modality (one line per quantizer)."""
    figure, axes = _figure(6.4, 3.2)
    for colour, (modality, rows) in zip(COLOURS, counts.items(), strict=False):
        for index, row in enumerate(np.atleast_2d(rows)):
            share = np.sort(row)[::-1] / max(row.sum(), 1)
            axes.plot(
                np.arange(1, len(share) + 1),
                np.where(share > 0, share, np.nan),
                color=colour,
                alpha=1 / (1 + 0.5 * index),
                label=modality if index == 0 else None,
            )
    axes.set(xscale="log", yscale="log", xlabel="code, most used first", ylabel="share of tokens")
    axes.legend(frameon=False)
    return png_uri(figure)


def expert_heat_map(load: Mapping[str, np.ndarray]) -> str:
    """Share of each layer's tokens that each expert took, one panel per modality, rows are layers."""
    layers = max(len(np.atleast_2d(found)) for found in load.values())
    figure = Figure(figsize=(8.6, len(load) * (0.8 + 0.24 * layers)), layout="constrained")
    panels = figure.subplots(len(load), 1, squeeze=False, sharex=True)[:, 0]
    shares = {m: np.atleast_2d(f) / np.maximum(np.atleast_2d(f).sum(1, keepdims=True), 1e-12) for m, f in load.items()}
    top = max(float(np.quantile(s, 0.999)) for s in shares.values())
    for axes, (modality, share) in zip(panels, shares.items(), strict=True):
        # Dead experts are white, so that they can be seen whatever the scale.
        image = axes.imshow(
            np.where(share > 0, share, np.nan), aspect="auto", cmap="viridis", vmin=0, vmax=top, interpolation="nearest"
        )
        axes.set(ylabel=f"{modality}\nlayer", yticks=range(len(share)))
        figure.colorbar(image, ax=axes, pad=0.01)
    panels[-1].set_xlabel("expert")
    return png_uri(figure)


def loss_curves(history: Sequence[Mapping[str, float]], terms: Sequence[str]) -> str:
    """Training terms against the step on a log axis; shaded bands are the stages of the schedule."""
    figure, axes = _figure(8.6, 3.8)
    for index, term in enumerate(terms):
        points = np.array([(row["step"], row[term]) for row in history if term in row and "step" in row])
        if len(points):
            style = "-" if index < len(COLOURS) else "--"
            axes.plot(
                *points.T,
                linestyle=style,
                color=COLOURS[index % len(COLOURS)],
                linewidth=1.2,
                marker="o" if len(points) < 20 else None,
                markersize=3,
                label=term.removeprefix("train/"),
            )
    _shade_stages(axes, history)
    values = [row[term] for row in history for term in terms if term in row]
    axes.set(xlabel="step", ylabel="loss", yscale="log" if values and min(values) > 0 else "linear")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return png_uri(figure)


def _shade_stages(axes: Axes, history: Sequence[Mapping[str, float]]) -> None:
    stages = [(row["step"], row["stage"]) for row in history if "stage" in row and "step" in row]
    for stage in sorted({stage for _, stage in stages}):
        steps = [step for step, found in stages if found == stage]
        axes.axvspan(min(steps), max(steps), color="#d8dee4", alpha=0.25 + 0.3 * (int(stage) % 2), linewidth=0)
        axes.text(min(steps), 1.01, f"stage {stage:g}", transform=axes.get_xaxis_transform(), fontsize=8)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes
