"""What a run reads, and how it is prepared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from kernels.ranges import check_ranges
from mm.readers import Augment


@dataclass(frozen=True)
class DataConfig:
    """What a run reads, and how it is prepared."""

    root: str | None = None
    """A folder in COCO caption layout, or of webdataset shards.

    Without it, the embedded scenes are generated under `cache`.
    """
    train: str = "train"
    """Split to train on."""
    val: str = "val"
    """Split to evaluate on."""
    karpathy: str | None = None
    """The official dataset_coco.json; `train` and `val` then name its splits, joined by + where several."""
    audio_root: str | None = None
    """Where `audio/` lies, if not in `root` (scripts/prepare_speech.py writes one)."""
    cache: str = "data"
    """Folder for generated scenes and for the features of frozen trunks."""
    augment: Augment | None = None
    """Random crops and mirroring of training images; none for scenes, whose captions say left and right."""
    views: Annotated[int, "[1, inf)"] = 1
    """Cached features of a frozen image trunk: the plain image and views-1 augmented ones, one per epoch in turn."""
    captions: Annotated[int, "[1, inf)"] = 1
    """Captions of each image in a training step, all of them its positives: text is cheaper than images."""
    limit_images: Annotated[int, "[0, inf)"] = 0
    """Train on so many of the images, the same ones whatever the seed; 0 for all."""
    limit_captions: Annotated[int, "[0, inf)"] = 0
    """Train on the first so many captions of each image; 0 for all."""
    workers: Annotated[int | Literal["auto"], "[0, inf)"] = "auto"
    """Processes that decode samples while the model trains; with 0 decoded samples stay in memory. auto is 0 where the
    model needs the processor itself, and beside a GPU its cores but two, at most 12."""

    def __post_init__(self) -> None:
        check_ranges(self, "data")

    @property
    def folder(self) -> Path:
        """Where the splits lie."""
        if self.root is None:
            return Path(self.cache) / "scenes"
        return Path(self.root)


@dataclass(frozen=True)
class BatchPlan:
    """Which samples a training step holds: `batch_size` samples over all processes at each of `steps` steps, in an
    order that `seed` decides."""

    batch_size: int
    steps: int
    seed: int = 0
