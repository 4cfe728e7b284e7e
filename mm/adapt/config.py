"""Settings of what adapts a finished run: the set it is adapted to, fine-tuning, and continued pre-training."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from alignment import ScheduleConfig
from kernels.ranges import check_ranges
from mm.compress.lora import LoraConfig
from mm.config import AlignConfig, OptimConfig, TrainConfig
from mm.data.config import DataConfig
from mm.readers import Augment

Strategy = Literal["lora", "qlora", "full"]


@dataclass(frozen=True)
class DomainData:
    """The set a run is adapted to, and how training reads it: whatever the run had for its own set ends with it, except
    what its images look like to it."""

    root: str
    """Folder in COCO caption layout or of shards; scripts/prepare_domain.py writes one."""
    train: str = "train"
    """Split to train on."""
    val: str = "val"
    """Split that selects the checkpoint and is reported."""
    audio_root: str | None = None
    """Where `audio/` lies, if not in `root`."""
    augment: Augment | None = None
    """Random crops and mirroring of training images."""
    captions: Annotated[int, "[1, inf)"] = 1
    """Captions of each image in a training step."""
    limit_images: Annotated[int, "[0, inf)"] = 0
    """Train on so many of the images, the same ones whatever the seed; 0 for all."""
    limit_captions: Annotated[int, "[0, inf)"] = 0
    """Train on the first so many captions of each image; 0 for all."""
    views: Annotated[int | None, "[1, inf)"] = None
    """Of a frozen image trunk: the plain image and views-1 augmented ones; by default as many as the run had."""
    fit: Literal["squash", "crop"] | None = None
    """How an image becomes a square; by default as the run had it."""

    def __post_init__(self) -> None:
        check_ranges(self, "data")


@dataclass(frozen=True)
class MixConfig:
    """The weights of two losses, and the stages of the learning rate."""

    domain: Annotated[float, "(0, inf)"] = 0.7
    """Weight of the domain's loss, λ_domain."""
    general: Annotated[float, "[0, inf)"] = 0.3
    """Weight of the loss on the run's own training set, λ_general."""
    stages: Annotated[int, "[1, inf)"] = 4
    """Equal parts of the run, at each of which the learning rate falls."""
    stage_factor: Annotated[float, "(0, 1]"] = 0.8
    """What it is then multiplied by; it begins at optim.learning_rate, without a warm-up."""

    def __post_init__(self) -> None:
        check_ranges(self, "mix")


@dataclass(frozen=True)
class AdaptConfig:
    """What every adaptation is told."""

    run: str
    """Folder of the finished run that is adapted, or hf://org/name[@revision], which is pulled into <runs>."""
    data: DomainData
    name: str = ""
    """The adapted run is written to <runs>/<name>; by default <run>_<data>_<what was done>."""
    runs: str = "runs"
    """Folder of all runs."""
    seed: Annotated[int, "[0, 4294967295]"] = 0
    """Of new weights, the order of the samples, and everything that a step draws."""
    resume: bool = False
    """Go on from the newest checkpoint of the run of this name."""
    metric: str = "RSUM"
    """The checkpoint with the largest is kept: RSUM, image_to_text/R@1 …, of data.val without re-ranking."""
    patience: Annotated[int, "[0, inf)"] = 0
    """Evaluations without a better checkpoint after which training stops; 0 never stops early."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Its rates come on top of those that the run had for its encoders."""
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(kind="joint"))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=200, batch_size=32, evaluate_every=0))

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class FinetuneConfig(AdaptConfig):
    """Adapt a finished run to another set."""

    strategy: Literal["auto", "lora", "qlora", "full"] = "auto"
    """auto: lora below 10,000 training images, qlora to 100,000, full above."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    general: bool = True
    """Evaluate the run's own validation split before and after: what was forgotten."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=3e-4))
    """Its rates come on top of those that the run had for its encoders."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=200, batch_size=32, evaluate_every=50))


@dataclass(frozen=True)
class ContinueConfig(AdaptConfig):
    """Continue the training of a finished run on a domain, mixed with its own set."""

    terms: str | None = None
    """File of the domain's terms, one in each line, to whose tokens attention is drawn."""
    mix: MixConfig = field(default_factory=MixConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-5, rates={"*.term_bias": 100.0}))
    """The stages of `mix` stand in the place of its warm-up and decay. Term biases start at zero, and would stay there
    at 1e-5."""


def folder_of(config: AdaptConfig, kind: str) -> Path:
    """Where the adapted run is written; `kind` says in its default name what was done."""
    default = f"{Path(config.run).name}_{Path(config.data.root).name}_{kind}"
    return Path(config.runs) / (config.name or default)


def adapted_config(own: AlignConfig, config: AdaptConfig) -> AlignConfig:
    """A run's own settings, reading the domain's set and training as asked for; on one device."""
    asked = config.data
    data = DataConfig(
        root=asked.root,
        train=asked.train,
        val=asked.val,
        audio_root=asked.audio_root,
        cache=own.data.cache,
        augment=asked.augment,
        views=own.data.views if asked.views is None else asked.views,
        captions=asked.captions,
        limit_images=asked.limit_images,
        limit_captions=asked.limit_captions,
        workers=own.data.workers,
    )
    return replace(
        own,
        image=replace(own.image, fit=asked.fit or own.image.fit),
        runs=config.runs,
        seed=config.seed,
        data=data,
        optim=replace(config.optim, rates=adapted_rates(own, config)),
        schedule=config.schedule,
        train=replace(config.train, devices=1, num_nodes=1, strategy="auto"),
    )


def described_data(config: AlignConfig, images: int) -> str:
    """How an adapted run reads its training set, in a line.

    Args:
        config: of the adapted run.
        images: in its training split.
    """
    data = config.data
    seen = min(images, data.limit_images or images)
    drawn = f"the first {data.limit_captions}" if data.limit_captions else "all"
    return (
        f"{data.folder}: {seen:,} of {images:,} images, {data.captions} a step of {drawn} captions each,"
        f" augment {data.augment}, {data.views} views, image.fit {config.image.fit}"
    )


def adapted_rates(own: AlignConfig, config: AdaptConfig) -> dict[str, float]:
    """The rates that are asked for, after those that the run had for its encoders: the last that fits counts.

    What an earlier adaptation asked for elsewhere belongs to that adaptation.
    """
    asked = config.optim.rates
    rates = {}
    for pattern, rate in own.optim.rates.items():
        if pattern.startswith("encoders.") and pattern not in asked:
            rates[pattern] = rate
    return rates | asked
