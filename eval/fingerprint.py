"""A model's behaviour on a fixed probe batch, stored with its weights and checked wherever they are used again.

Weights alone do not fix what a model computes: another activation (QuickGELU for GELU), another tokenizer, another
normalisation of pixels load without complaint and score worse. The probe's outputs are kept in half precision and
compared within a tolerance, so that another machine passes and another function does not; the digest names them.
Run the probe in fp32: bf16 through many layers strays by about as much as QuickGELU does.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

TOLERANCE = 0.01
KEPT = 4096


class FingerprintError(ValueError):
    """The model does not do what the stored fingerprint says it did."""


@dataclass(frozen=True)
class Fingerprint:
    """outputs: name -> the first `KEPT` values (float16, flat); shapes: name -> full shape of that output."""

    outputs: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]

    @property
    def digest(self) -> str:
        """Hexadecimal hash of names, shapes and stored values."""
        content = hashlib.sha256()
        for name in sorted(self.outputs):
            content.update(f"{name} {self.shapes[name]}".encode())
            content.update(self.outputs[name].astype("<f2").tobytes())
        return content.hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """For model.json; `of_json` reads it back."""
        stored = {
            name: {"shape": list(self.shapes[name]), "half": base64.b64encode(v.astype("<f2").tobytes()).decode()}
            for name, v in self.outputs.items()
        }
        return {"digest": self.digest, "outputs": stored}

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> "Fingerprint":
        """Raises FingerprintError when the digest is not that of the stored values."""
        outputs = {n: np.frombuffer(base64.b64decode(v["half"]), dtype="<f2") for n, v in stored["outputs"].items()}
        found = cls(outputs, {n: tuple(v["shape"]) for n, v in stored["outputs"].items()})
        if found.digest != stored["digest"]:
            raise FingerprintError(f"the stored fingerprint is damaged: digest {stored['digest']}, here {found.digest}")
        return found


def fingerprint(probe: Callable[[], Mapping[str, ArrayLike]]) -> Fingerprint:
    """Run the probe (a fixed batch through the model, in evaluation mode) and keep its named float outputs.

    Raises FingerprintError on outputs that are not finite.
    """
    found = {name: np.asarray(value, dtype=np.float32) for name, value in probe().items()}
    for name, value in found.items():
        if not np.isfinite(value).all() or np.abs(value).max(initial=0) > 65000:
            raise FingerprintError(f"probe output {name!r} is not finite in half precision: no fingerprint can be kept")
    kept = {name: value.ravel()[:KEPT].astype(np.float16) for name, value in found.items()}
    return Fingerprint(kept, {name: value.shape for name, value in found.items()})


def check(stored: Fingerprint, probe: Callable[[], Mapping[str, ArrayLike]], tolerance: float = TOLERANCE) -> float:
    """Run the probe again; -> the largest error relative to an output's RMS. FingerprintError beyond `tolerance`."""
    now, worst = fingerprint(probe), 0.0
    if set(now.outputs) != set(stored.outputs):
        raise FingerprintError(
            f"the model gives {sorted(now.outputs)} on the probe batch; its weights were stored with"
            f" {sorted(stored.outputs)}"
        )
    for name, was in stored.outputs.items():
        if now.shapes[name] != stored.shapes[name]:
            raise FingerprintError(
                f"probe output {name!r} has shape {now.shapes[name]}, stored {stored.shapes[name]}:"
                " another architecture or another tokenizer"
            )
        before, after = was.astype(np.float32), now.outputs[name].astype(np.float32)
        error = float(np.sqrt(np.mean((after - before) ** 2)) / max(float(np.sqrt(np.mean(before**2))), 1e-6))
        worst = max(worst, error)
        if error > tolerance:
            raise FingerprintError(
                f"these weights behave differently from when they were stored: {name!r} on the probe batch is off by"
                f" {100 * error:.1f} % (allowed {100 * tolerance:g} %); look for another activation, tokenizer or"
                " normalisation"
            )
    return worst
