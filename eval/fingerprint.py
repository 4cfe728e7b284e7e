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

from kernels.errors import UserError

TOLERANCE = 0.01
ROUNDED_TOLERANCE = 0.05
"""Of a model that rounds what its layers read to 8 bits: where sums are added in another order, as another number of
threads does, values at an edge fall to the other side of it, and many layers make 1.3 % of that."""
KEPT = 4096
LARGEST = 65000
Probe = Callable[[], Mapping[str, ArrayLike]]
"""A fixed batch through the model, in evaluation mode -> its named float outputs."""


class FingerprintError(UserError):
    """The model does not do what the stored fingerprint says it did."""


@dataclass(frozen=True)
class Fingerprint:
    """What a model gave on its probe batch."""

    outputs: dict[str, np.ndarray]
    """Name -> the first `KEPT` values (float16, flat)."""
    shapes: dict[str, tuple[int, ...]]
    """Name -> full shape of that output."""

    @property
    def digest(self) -> str:
        """Hexadecimal hash of names, shapes and stored values."""
        content = hashlib.sha256()
        for name in sorted(self.outputs):
            content.update(f"{name} {self.shapes[name]}".encode())
            content.update(_half_bytes(self.outputs[name]))
        return content.hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """For model.json; `of_json` reads it back."""
        stored = {}
        for name, values in self.outputs.items():
            half = base64.b64encode(_half_bytes(values)).decode()
            stored[name] = {"shape": list(self.shapes[name]), "half": half}
        return {"digest": self.digest, "outputs": stored}

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> "Fingerprint":
        """What `as_json` made.

        Raises:
            FingerprintError: it is none, or its digest is not that of the stored values.
        """
        outputs = {}
        shapes = {}
        try:
            for name, output in stored["outputs"].items():
                outputs[name] = np.frombuffer(base64.b64decode(output["half"]), dtype="<f2")
                shapes[name] = tuple(output["shape"])
            digest = stored["digest"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FingerprintError(f"the stored fingerprint is none: {type(error).__name__} {error}") from error
        found = cls(outputs, shapes)
        if found.digest != digest:
            raise FingerprintError(f"the stored fingerprint is damaged: digest {digest}, here {found.digest}")
        return found


def fingerprint(probe: Probe) -> Fingerprint:
    """Run the probe and keep its outputs.

    Raises:
        FingerprintError: on outputs that are not finite in half precision.
    """
    outputs = {}
    shapes = {}
    for name, output in probe().items():
        values = np.asarray(output, dtype=np.float32)
        if not np.isfinite(values).all() or np.abs(values).max(initial=0) > LARGEST:
            raise FingerprintError(f"probe output {name!r} is not finite in half precision: no fingerprint can be kept")
        outputs[name] = values.ravel()[:KEPT].astype(np.float16)
        shapes[name] = values.shape
    return Fingerprint(outputs, shapes)


def check(stored: Fingerprint, probe: Probe, tolerance: float = TOLERANCE) -> float:
    """Run the probe again.

    Returns:
        the largest error relative to an output's RMS.

    Raises:
        FingerprintError: beyond `tolerance`, and on other outputs or shapes.
    """
    now = fingerprint(probe)
    if set(now.outputs) != set(stored.outputs):
        raise FingerprintError(
            f"the model gives {sorted(now.outputs)} on the probe batch; its weights were stored with"
            f" {sorted(stored.outputs)}"
        )
    worst = 0.0
    for name, was in stored.outputs.items():
        if now.shapes[name] != stored.shapes[name]:
            raise FingerprintError(
                f"probe output {name!r} has shape {now.shapes[name]}, stored {stored.shapes[name]}:"
                " another architecture or another tokenizer"
            )
        error = _relative_error(was, now.outputs[name])
        worst = max(worst, error)
        if error > tolerance:
            raise FingerprintError(
                f"these weights behave differently from when they were stored: {name!r} on the probe batch is off by"
                f" {100 * error:.1f} % (allowed {100 * tolerance:g} %); look for another activation, tokenizer or"
                " normalisation"
            )
    return worst


def _relative_error(was: np.ndarray, now: np.ndarray) -> float:
    """RMS of the difference over the RMS of what was stored."""
    before = was.astype(np.float32)
    after = now.astype(np.float32)
    return _rms(after - before) / max(_rms(before), 1e-6)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _half_bytes(values: np.ndarray) -> bytes:
    return values.astype("<f2").tobytes()
