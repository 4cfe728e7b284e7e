"""Is the machinery utilized? Codes of a vector-quantized bottleneck and experts of a mixture, from counts alone.

Perplexity is exp of the entropy of use: the number of codes (or experts) that would give the same entropy if all were
used equally. A code or an expert is dead when nothing was ever sent to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Diagnostics:
    """Counts of an evaluated split, by modality: the content of a run's diagnostics.npz."""

    code_counts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(Q, S): how often each of S codes of Q quantizers was taken."""
    expert_load: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(layers, E): how many tokens each of E experts took."""

    def arrays(self) -> dict[str, np.ndarray]:
        """`code_counts/<modality>` and `expert_load/<modality>`."""
        found = {f"code_counts/{modality}": counts for modality, counts in self.code_counts.items()}
        for modality, load in self.expert_load.items():
            found[f"expert_load/{modality}"] = load
        return found

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> "Diagnostics":
        """From named arrays, such as an open .npz file."""
        parts: dict[str, dict[str, np.ndarray]] = {"code_counts": {}, "expert_load": {}}
        for name in arrays:
            part, _, modality = name.partition("/")
            parts[part][modality] = np.asarray(arrays[name])
        return cls(**parts)


@dataclass(frozen=True)
class Utilization:
    """How some choices were used."""

    size: int
    """How many there are."""
    dead: int
    """How many were never taken."""
    perplexity: float
    """Effective number."""
    peak: float
    """The busiest over the mean."""

    @property
    def used(self) -> float:
        """Share of the choices that was used at all, in percent."""
        return 100 * (self.size - self.dead) / self.size


def utilization(counts: ArrayLike) -> Utilization:
    """From counts of choices.

    Args:
        counts: (S,) >= 0, how often each choice was taken.

    Raises:
        ValueError: on negative or non-finite counts, and on none.
    """
    found = np.asarray(counts, dtype=np.float64)
    if found.ndim != 1 or not found.size or not np.isfinite(found).all() or found.min() < 0:
        raise ValueError(f"counts of use are a vector of finite numbers >= 0, not an array of shape {found.shape}")
    total = found.sum()
    if total == 0:
        return Utilization(found.size, dead=found.size, perplexity=0.0, peak=0.0)
    dead = int((found == 0).sum())
    share = found[found > 0] / total
    entropy = -(share * np.log(share)).sum()
    peak = found.max() * found.size / total
    return Utilization(found.size, dead, float(np.exp(entropy)), float(peak))


def code_utilization(counts: Mapping[str, ArrayLike]) -> dict[str, list[Utilization]]:
    """How the codes were used.

    Args:
        counts: modality -> (Q, S), how often each of S codes of Q quantizers was taken.

    Returns:
        modality -> utilization of each quantizer.
    """
    found = {}
    for modality, rows in counts.items():
        by_quantizer = np.atleast_2d(np.asarray(rows))
        found[modality] = [utilization(row) for row in by_quantizer]
    return found


def expert_utilization(load: Mapping[str, ArrayLike]) -> dict[str, list[Utilization]]:
    """How the experts were used.

    Args:
        load: modality -> (layers, E), how many tokens each expert took.

    Returns:
        modality -> utilization of each layer; `all` is the sum over modalities, where there are several.

    Raises:
        ValueError: where the modalities differ in shape.
    """
    loads = {modality: _loads(found) for modality, found in load.items()}
    shapes = {modality: found.shape for modality, found in loads.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"expert load must have one shape (layers, E), not {shapes}")
    if len(loads) > 1:
        loads["all"] = np.sum(list(loads.values()), axis=0)
    return code_utilization(loads)


def expert_overlap(load: Mapping[str, ArrayLike]) -> dict[str, float]:
    """How much two modalities share their experts.

    Args:
        load: modality -> (layers, E), how many tokens each expert took.

    Returns:
        `a & b` -> mean over layers of the shared routing mass, 0 (disjoint experts) to 1 (the same use).
    """
    shares = {}
    for modality, found in load.items():
        values = _loads(found)
        tokens = values.sum(1, keepdims=True)
        shares[modality] = values / np.maximum(tokens, 1e-12)
    overlap = {}
    for a, b in combinations(shares, 2):
        shared = np.minimum(shares[a], shares[b]).sum(1)
        overlap[f"{a} & {b}"] = float(shared.mean())
    return overlap


def _loads(found: ArrayLike) -> np.ndarray:
    """(layers, E) float64."""
    return np.atleast_2d(np.asarray(found, dtype=np.float64))
