"""Retrieval from stored codes, beside float32 vectors and product quantization of the same vectors."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from eval.plots import COLOURS
from eval.tables import markdown, measured_on

COLUMNS = ("model", "stored of an image", "bytes an image", "R@1 image→text", "R@1 text→image", "RSUM")
CODES = "codes"
FLOAT = "float32 vector"
PRODUCT = "product quantization"


def stored_codes_table(results: Sequence[Mapping[str, Any]]) -> str:
    """What is left of retrieval by what is stored of an image.

    Args:
        results: as scripts/eval_codes.py writes them.
    """
    rows = []
    for result in results:
        for row in result["rows"]:
            recalls = [f"{row[name]:.1f}" for name in ("image_to_text/R@1", "text_to_image/R@1", "RSUM")]
            rows.append([row["model"], row["stored"], f"{row['bytes']:,}", *recalls])
    about = results[0]
    note = (
        f"{about['images']:,} images of {about['dataset']}, captions as float32 vectors; faiss {about['faiss']} learned"
        f" its centroids from the vectors of {about['learned_from']:,} training images. {measured_on(results)}."
    )
    return f"{markdown(COLUMNS, rows)}\n\n{note}"


def stored_codes_plot(result: Mapping[str, Any]) -> Figure:
    """RSUM against the bytes that are stored of an image: codes of each model, and vectors of the first one."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    first = result["rows"][0]["model"]
    kinds: dict[str, list[tuple[int, float]]] = {}
    for row in result["rows"]:
        if row["stored"] == CODES:
            kinds.setdefault("codes of tokens, each model its own", []).append((row["bytes"], row["RSUM"]))
        elif row["model"] == first and row["stored"] == PRODUCT:
            kinds.setdefault(f"{PRODUCT}, vectors of {first}", []).append((row["bytes"], row["RSUM"]))
        elif row["model"] == first:
            axes.axhline(row["RSUM"], color="grey", linestyle=":", label=f"{row['bytes']:,} bytes: {FLOAT} of {first}")
    for colour, (label, points) in zip(COLOURS, kinds.items(), strict=False):
        axes.plot(*zip(*sorted(points), strict=True), "o-", color=colour, label=label)
    axes.set(xscale="log", xlabel="bytes stored of an image", ylabel="RSUM")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure
