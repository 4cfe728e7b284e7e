"""An image of expert load for notebooks, by matplotlib; reports draw their own. No global state is touched."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#9a6700", "#8250df", "#57606a")


def png_uri(figure: Figure, dpi: int = 110) -> str:
    """A matplotlib figure as `data:image/png;base64,...`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def save_svg(figure: Figure, path: Path) -> None:
    """A matplotlib figure as SVG with words as words, the same bytes of the same figure."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mm-align"}):
        figure.savefig(path, metadata={"Date": None})


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
