"""One run's settings. The defaults are the embedded run; a YAML in configs/ lists only what differs."""

from dataclasses import dataclass, field
from typing import Literal

from alignment import PAIRS, LossConfig, ScheduleConfig
from encoders import AudioConfig, ImageConfig, TextConfig
from mm.data.module import DataConfig
from mm.model.multimodal import ModelConfig
from mm.train.optim import OptimConfig


@dataclass(frozen=True)
class TrainConfig:
    """How long, how wide and on what a run trains."""

    steps: int = 140
    """Optimizer steps of the whole run; the schedules are fractions of it."""
    batch_size: int = 32
    """Images per step, over all processes."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is bf16 autocast where the processor has it."""
    checkpoint_every: int = 200
    """Steps between checkpoints to resume from."""
    evaluate_every: int = 0
    """Steps between evaluations on the validation split; 0 evaluates at the end only."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is what is evaluated and saved; 0 for none."""
    freeze: tuple[str, ...] = ()
    """Name patterns of parameters that do not train, such as encoders.text.trunk.*embeddings*."""
    accelerator: str = "auto"
    devices: int | Literal["auto"] = "auto"
    strategy: str = "auto"
    """Any Lightning strategy: auto, ddp, fsdp, deepspeed_stage_3, …"""


@dataclass(frozen=True)
class EvalConfig:
    """How a split is evaluated."""

    batch_size: int = 256
    rerank: int = 2
    """How many candidates of each query are scored again through cross-modal attention; 0 for none."""
    rerank_pairs: tuple[str, ...] = ("image_text",)
    """Which pairs are re-ranked: image_text, audio_text, image_audio. Each costs a joint forward per candidate."""
    rerank_contrastive: float = 1.0
    """Weight of the embeddings' logit, which is added to the match logit when re-ranking."""
    rerank_filip: float = 1.0
    """Weight of the late interaction's logit, which is added to the match logit when re-ranking."""

    def __post_init__(self) -> None:
        known = [f"{a}_{b}" for a, b in PAIRS]
        if unknown := [pair for pair in self.rerank_pairs if pair not in known]:
            raise ValueError(f"eval.rerank_pairs names {unknown[0]!r}: choose from {', '.join(known)}")


@dataclass(frozen=True)
class AlignConfig:
    """All settings of a run."""

    name: str = "default"
    """The run is written to <runs>/<name>."""
    runs: str = "runs"
    seed: int = 0
    resume: bool = False
    """Go on from the newest checkpoint of the run of this name."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
