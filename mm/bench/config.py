"""Settings of the bench scripts that time parts of a run, and of the soak test."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from kernels.ranges import check_ranges
from mm.config import AlignConfig

CONFIGS = Path(__file__).parents[2] / "configs"
GpuPart = Literal["parity", "sparse", "step", "memory", "writing", "evaluation", "run", "kernels"]
"""What `gpu_check` measures, in its order: the longest last, whose contests are written one by one."""
GPU_PARTS: tuple[GpuPart, ...] = get_args(GpuPart)


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
class FeedingConfig(AlignConfig):
    """How fast a run's batches are made, beside how fast its JPEGs could be decoded."""

    images: Annotated[int, "[1, inf)"] = 2000
    """Of the generated set that is read without data.root."""
    batches: Annotated[int, "[2, inf)"] = 8
    """That are made and timed, after one for each process that starts."""
    json: str | None = None
    """Where to write what was measured."""


@dataclass(frozen=True)
class SoakConfig:
    """What the soak test runs."""

    config: Path = CONFIGS / "soak.yaml"
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


@dataclass(frozen=True)
class GpuConfig:
    """What is measured on a GPU."""

    parts: tuple[GpuPart, ...] = GPU_PARTS
    """parity: the kernels' tests on the device. sparse: experts beside dense layers of equal active and of equal total
    width. step: at several batches, with host waits and launches, beside open_clip's towers. memory: of a step, with
    gradient checkpointing and without. writing: tokens a second of 128 sequences at once. evaluation: the evaluator,
    features of a trunk, and re-ranking. run: a whole run of train_align.py. kernels: their table, with peers and
    limits."""
    settings: Path = CONFIGS / "bench.yaml"
    """File with the settings of the steps that are measured."""
    accelerator: str = "gpu"
    """gpu, or cpu to see that everything runs."""
    tiny: bool = False
    """Small sizes, once each: whether everything runs, not how fast."""
    seconds: Annotated[int, "[1, inf)"] = 240
    """Of all parts together: what does not fit is left out, and said to be."""
    commit: str | None = None
    """Of the code, where it is no git checkout but a copy of one."""
    json: Path | None = None
    """Where to write what was measured; by default eval/results/gpu_<card>.json."""

    def __post_init__(self) -> None:
        check_ranges(self, "")
