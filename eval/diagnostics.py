"""Is the machinery used? Codes of a vector-quantized bottleneck and experts of a mixture, from counts alone.

Perplexity is exp of the entropy of use: the number of codes (or experts) that would give the same entropy if all were
used equally. A code or an expert is dead when nothing was ever sent to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Utilization:
    """How `size` choices were used: `dead` never, `perplexity` effective number, `peak` the busiest over the mean."""

    size: int
    dead: int
    perplexity: float
    peak: float

    @property
    def used(self) -> float:
        """Share of the choices that was used at all, in percent."""
        return 100 * (self.size - self.dead) / self.size


def utilization(counts: ArrayLike) -> Utilization:
    """From how often each of S choices was taken, (S,) >= 0. Raises ValueError on negative or non-finite counts."""
    found = np.asarray(counts, dtype=np.float64)
    if found.ndim != 1 or not found.size or not np.isfinite(found).all() or found.min() < 0:
        raise ValueError(f"counts of use are a vector of finite numbers >= 0, not an array of shape {found.shape}")
    total = found.sum()
    if total == 0:
        return Utilization(found.size, found.size, 0.0, 0.0)
    share = found[found > 0] / total
    perplexity = float(np.exp(-(share * np.log(share)).sum()))
    return Utilization(found.size, int((found == 0).sum()), perplexity, float(found.max() * found.size / total))


def code_utilization(counts: Mapping[str, ArrayLike]) -> dict[str, list[Utilization]]:
    """Per modality and quantizer, from counts (Q, S) by modality."""
    return {
        modality: [utilization(row) for row in np.atleast_2d(np.asarray(found))] for modality, found in counts.items()
    }


def expert_utilization(load: Mapping[str, ArrayLike]) -> dict[str, list[Utilization]]:
    """Per modality and layer, from load (layers, E) by modality; `all` is the sum over modalities."""
    loads = {modality: np.atleast_2d(np.asarray(found, dtype=np.float64)) for modality, found in load.items()}
    if len({found.shape for found in loads.values()}) > 1:
        raise ValueError(f"expert load must have one shape (layers, E), not { {m: f.shape for m, f in loads.items()} }")
    if len(loads) > 1:
        loads["all"] = np.sum(list(loads.values()), axis=0)
    return {modality: [utilization(row) for row in found] for modality, found in loads.items()}


def expert_overlap(load: Mapping[str, ArrayLike]) -> dict[str, float]:
    """`a & b` -> mean over layers of the shared routing mass, 0 (disjoint experts) to 1 (the same use)."""
    share = {}
    for modality, found in load.items():
        values = np.atleast_2d(np.asarray(found, dtype=np.float64))
        share[modality] = values / np.maximum(values.sum(1, keepdims=True), 1e-12)
    names = list(share)
    return {
        f"{a} & {b}": float(np.minimum(share[a], share[b]).sum(1).mean())
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }
