"""What a run reads, and how it is prepared."""

from dataclasses import dataclass
from pathlib import Path

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
    views: int = 1
    """Cached features of a frozen image trunk: the plain image and views-1 augmented ones, one per epoch in turn."""
    captions: int = 1
    """Captions of each image in a training step, all of them its positives: text is cheaper than images."""
    limit_images: int = 0
    """Train on so many of the images, the same ones whatever the seed; 0 for all."""
    limit_captions: int = 0
    """Train on the first so many captions of each image; 0 for all."""
    workers: int = 0
    """Processes that decode samples while the model trains; without any, decoded samples stay in memory."""

    def __post_init__(self) -> None:
        for name in ("views", "captions"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)}: it must be at least 1")
        if self.limit_images < 0 or self.limit_captions < 0:
            raise ValueError(
                f"data.limit_images={self.limit_images} and data.limit_captions={self.limit_captions}:"
                " neither can be negative, and 0 stands for all"
            )

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
