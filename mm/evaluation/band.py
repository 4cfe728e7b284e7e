"""What a run of the default settings is read beside: the same settings with other seeds, and linear heads alone.

Both were measured by `ablate.py configs/ablations/baseline.yaml`, whose table a checkout has and an installed package
has not.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from eval.report.charts import arrow
from eval.studies import STORED, Study
from mm.artifacts.settings import flat
from mm.config import AlignConfig

STUDY = STORED / "baseline.csv"
DEFAULT = "default"
LINEAR = "linear"
LINEAR_AS_LONG = "linear_equal_time"
"""Variants of the study: the second has the default's steps, the third its time."""
FREE = (
    "name",
    "runs",
    "seed",
    "resume",
    "data.cache",
    "data.workers",
    "train.accelerator",
    "train.devices",
    "train.num_nodes",
    "train.checkpoint_every",
    "train.evaluate_every",
    "train.logger",
)
"""Settings in which a run may differ from the default ones and is still such a run."""


@dataclass(frozen=True)
class Band:
    """Values of several seeds by measure, and those of linear heads on the same trunks, trained alike."""

    study: Study

    def seeds(self, measure: str) -> int:
        """How many seeds the band has."""
        return len(self.study.of(DEFAULT, measure))

    def limits(self, measure: str) -> tuple[float, float]:
        """The smallest and the largest value of a measure."""
        values = self.study.of(DEFAULT, measure)
        return float(values.min()), float(values.max())

    def linear(self, measure: str, variant: str = LINEAR) -> float:
        """The mean of linear heads."""
        return float(self.study.of(variant, measure).mean())

    def sentences(self, metrics: Mapping[str, float]) -> list[str]:
        """What to think of a run: inside the band or outside, against linear heads, and on what it has not seen.

        Args:
            metrics: of its result.json, which covers both splits of the scenes.
        """
        measure = "RSUM"
        value = metrics[measure]
        low, high = self.limits(measure)
        place = "within" if low <= value <= high else ("below" if value < low else "above")
        found = [
            f"RSUM {value:.0f} is {place} the {low:.0f} to {high:.0f} that {self.seeds(measure)} seeds of these"
            f" settings gave; linear heads on the same trunks reach {self.linear(measure):.0f} in as many steps and"
            f" {self.linear(measure, LINEAR_AS_LONG):.0f} in as much time."
        ]
        gaps = _gaps(metrics)
        if gaps:
            widest, gap = max(gaps.items(), key=lambda item: item[1])
            found.append(
                f"Composition costs {min(gaps.values()):.0f} to {gap:.0f} points of R@1, most in {arrow(widest)}: every"
                " scene of `val` holds a colour and shape that training never showed together, no scene of `seen` does."
            )
        return found


def stored_band(config: Mapping[str, Any]) -> Band | None:
    """The band of a run, None where its settings are not the default ones or nothing is stored.

    Args:
        config: of its result.json.
    """
    if not STUDY.is_file():
        return None
    default = json.loads(json.dumps(asdict(AlignConfig())))
    mine, theirs = flat(json.loads(json.dumps(config))), flat(default)
    differing = {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)}
    return Band(Study.load(STUDY)) if differing <= set(FREE) else None


def _gaps(metrics: Mapping[str, float]) -> dict[str, float]:
    """R@1 on combinations that training showed, above that on those it did not, by direction."""
    gaps = {}
    for name, value in metrics.items():
        split, _, rest = name.partition("/")
        if split == "seen" and rest.endswith("/R@1") and rest in metrics:
            gaps[rest.removesuffix("/R@1")] = value - metrics[rest]
    return gaps
