"""One run's settings. The defaults are the embedded run; a YAML in configs/ lists only what differs."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from alignment import LossConfig, ScheduleConfig
from encoders import AudioConfig, BottleneckConfig, ImageConfig, TextConfig
from kernels.ranges import check_ranges
from mm.data.config import BatchPlan, DataConfig
from mm.model.multimodal import ModelConfig

LoggerName = Literal["csv", "tensorboard", "wandb"]
EVALUATED_FROM = 100
"""Steps from which on a run is evaluated along the way."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, and the course of its learning rate."""

    learning_rate: Annotated[float, "(0, inf)"] = 1e-3
    """At its height, after the warm-up."""
    weight_decay: Annotated[float, "[0, inf)"] = 0.05
    """AdamW's, of matrices only."""
    warmup: Annotated[float, "[0, 1]"] = 0.05
    """Share of the run over which the learning rate rises from zero."""
    final: Annotated[float, "[0, 1]"] = 0.02
    """The learning rate ends at this share of its height."""
    clip: Annotated[float, "[0, inf)"] = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    rates: Annotated[dict[str, float], "[0, inf)"] = field(default_factory=dict)
    """Factors on the learning rate by name pattern, such as {"encoders.text.trunk.*": 0.1}; of several that fit a
    parameter, the last counts."""

    def __post_init__(self) -> None:
        check_ranges(self, "optim")


@dataclass(frozen=True)
class TrainConfig:
    """How long, how wide and on what a run trains."""

    steps: Annotated[int, "[1, inf)"] = 350
    """Optimizer steps of the whole run; the schedules are fractions of it."""
    batch_size: Annotated[int, "[1, inf)"] = 64
    """Images per step, over all processes."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is bf16 autocast where the device multiplies it natively; features and evaluation follow."""
    checkpoint_every: Annotated[int, "[1, inf)"] = 200
    """Steps between checkpoints to resume from."""
    evaluate_every: Annotated[int | Literal["auto"], "[0, inf)"] = "auto"
    """Steps between evaluations on the validation split; 0 evaluates at the end only. auto is a quarter of a run of
    100 steps and more; evaluations that would take more than a tenth of the time of training are skipped."""
    ema: Annotated[float, "[0, 1)"] = 0.0
    """Decay of an exponential moving average of the weights, which is what is evaluated and saved; 0 for none."""
    freeze: tuple[str, ...] = ()
    """Name patterns of parameters that do not train, such as encoders.text.trunk.*embeddings*."""
    accelerator: str = "auto"
    """cpu, gpu, or auto for a GPU where there is one: everything that the run does is done there."""
    devices: Annotated[int | Literal["auto"], "[1, inf)"] = "auto"
    """How many of them, on each machine."""
    num_nodes: Annotated[int, "[1, inf)"] = 1
    """Machines that train together, each of which runs the same command."""
    strategy: str = "auto"
    """auto (ddp on several devices), ddp, or a layout such as fsdp8, fsdp4-tp2 or fsdp8-ep8, see `mm-align plan`: fsdp
    shards the whole state (ZeRO-3), tp divides heads and hidden widths, ep experts, pp blocks; ddp2-fsdp4 shards twice
    alike, pp2-vpp2 interleaves two stages a process."""
    logger: LoggerName = "csv"
    """Where losses and figures go beside metrics.csv: csv nowhere, tensorboard or wandb into the run's folder."""

    def __post_init__(self) -> None:
        check_ranges(self, "train")

    @property
    def evaluation_steps(self) -> int:
        """`evaluate_every` in steps; 0 for none."""
        if self.evaluate_every != "auto":
            return self.evaluate_every
        return self.steps // 4 if self.steps >= EVALUATED_FROM else 0


@dataclass(frozen=True)
class EvalConfig:
    """How a split is evaluated."""

    batch_size: Annotated[int, "[1, inf)"] = 256
    """Samples, or captions, embedded at a time."""
    rerank: Annotated[int, "[0, inf)"] = 0
    """How many candidates of each image and caption are scored again by the match head and by late interaction, as far
    as the schedule trains them; 0 for none. Up to ten cannot change R@10, and with a match head each costs as much as
    embedding its pair."""
    rerank_weights: Annotated[tuple[float, float], "[0, inf)"] = (1.0, 1.0)
    """Weights of the contrastive and of the filip logit, which are added to the match logit when re-ranking; without a
    match head they are the score."""

    def __post_init__(self) -> None:
        check_ranges(self, "eval")


@dataclass(frozen=True)
class AlignConfig:
    """All settings of a run."""

    name: str = "default"
    """The run is written to <runs>/<name>."""
    runs: str = "runs"
    """Folder of all runs."""
    seed: Annotated[int, "[0, 4294967295]"] = 0
    """Of the initial weights, the order of the samples, and everything that a step draws."""
    resume: bool = False
    """Go on from the newest checkpoint of the run of this name."""
    encoder_weights: dict[str, str] = field(default_factory=dict)
    """By modality, model.safetensors of a `train_vqvae` run with the same settings, to start from."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)

    def __post_init__(self) -> None:
        check_ranges(self)


def encoders_of(config: AlignConfig) -> dict[str, Any]:
    """The settings of each modality's encoder that the model has, by its name."""
    return {modality: getattr(config, modality) for modality in config.model.modalities}


def trunks_of(config: AlignConfig) -> dict[str, str]:
    """The trunk of each modality that the model has, by its name."""
    return {modality: encoder.trunk for modality, encoder in encoders_of(config).items()}


def plan_of(config: AlignConfig) -> BatchPlan:
    """Which samples each training step holds."""
    return BatchPlan(config.train.batch_size, config.train.steps, config.seed)
