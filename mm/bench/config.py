"""Settings of the bench scripts that time parts of a run: a run's own, and how it is timed."""

from dataclasses import dataclass
from typing import Annotated

from mm.config import AlignConfig


@dataclass(frozen=True)
class StepConfig(AlignConfig):
    """One training step of a run, taken apart beside open_clip's."""

    progress: Annotated[float, "[0, 1]"] = 0.9
    """Share of the run at which the step is taken: late, every loss is on."""
    repeats: Annotated[int, "[1, inf)"] = 7
    """Steps of each implementation that are timed."""
    largest: Annotated[int, "[0, inf)"] = 12
    """How many operations outside arithmetic are listed."""
    json: str | None = None
    """Where to write what was measured."""


@dataclass(frozen=True)
class FeaturesConfig(AlignConfig):
    """How fast the features of a run's image trunk are made."""

    images: Annotated[int, "[1, inf)"] = 64
    """Images of one pass: as many as are read at a time when they are cached."""
    repeats: Annotated[int, "[1, inf)"] = 5
    """Passes of each implementation that are timed."""
    json: str | None = None
    """Where to write what was measured."""
