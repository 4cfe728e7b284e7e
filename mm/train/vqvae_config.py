"""The settings of one modality's VQ-VAE."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from encoders import AudioConfig, BottleneckConfig, ImageConfig, TextConfig
from kernels.errors import UserError
from kernels.ranges import check_ranges
from mm.config import OptimConfig, TrainConfig
from mm.data.config import DataConfig
from mm.modalities import MODALITIES


@dataclass(frozen=True)
class VQVAEConfig:
    """All settings of one modality's VQ-VAE."""

    modality: str = "image"
    """Whose VQ-VAE is trained: image, audio or text; the settings of the other two are not read."""
    name: str | None = None
    """The run is written to <runs>/<name>; vqvae_<modality> by default."""
    runs: str = "runs"
    """Folder of all runs."""
    seed: Annotated[int, "[0, 4294967295]"] = 0
    """Of the initial weights and the order of the samples."""
    resume: bool = False
    """Go on from the newest checkpoint of the run of this name."""
    encoder_weights: str | None = None
    """model.safetensors of a run with the same settings, to start from."""
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=400, batch_size=128))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=7e-4))
    image: ImageConfig = field(default_factory=ImageConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    bottleneck: BottleneckConfig = field(default_factory=lambda: BottleneckConfig(reconstruct=32))

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.modality not in MODALITIES:
            raise UserError(f"modality={self.modality!r}: choose from {', '.join(MODALITIES)}")
        if self.bottleneck.mode == "continuous":
            raise UserError("bottleneck.mode=continuous has no codes to train: use both or vq")
        own = encoder_of(self)
        if own.frozen and own.trunk == "scratch":
            raise UserError(
                f"{self.modality}.frozen=true with a trunk from scratch: its VQ-VAE is what is trained; leave it out"
            )


def encoder_of(config: VQVAEConfig) -> Any:
    """The settings of the one modality's encoder."""
    return getattr(config, config.modality)
