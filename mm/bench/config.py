"""Settings of the bench scripts that time parts of a run, and of the soak test."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from kernels.ranges import check_ranges
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


@dataclass(frozen=True)
class SoakConfig:
    """What the soak test runs."""

    config: Path = Path(__file__).parents[2] / "configs" / "soak.yaml"
    """Settings of the runs."""
    runs: Path = Path("runs/soak")
    """Folder they are written to; must not hold runs of these names."""
    kills: Annotated[int, "[0, inf)"] = 10
    """How many times the run is killed; 0 skips this part."""
    steps: Annotated[int, "[1, inf)"] = 400
    """Its steps."""
    memory_steps: Annotated[int, "[0, inf)"] = 5000
    """Steps of the run whose memory is watched; 0 skips it."""
    seed: Annotated[int, "[0, inf)"] = 0
    """Of the moments at which it is killed, and of the damages."""
    presence: bool = True
    """Whether every combination of modalities, frozen trunks, absent parts, layouts and processes is run."""
    corrupt: Annotated[int, "[0, inf)"] = 1000
    """How many damaged files are read; 0 skips this part."""
    json: Path | None = None
    """Where to write what was found."""

    def __post_init__(self) -> None:
        check_ranges(self, "")
