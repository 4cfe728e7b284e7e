"""Pretraining of one modality's VQ-VAE alone, and what its codes keep of a split."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from alignment import ScheduleConfig
from encoders import ENCODERS, AudioConfig, EncoderOutput, Features, ImageConfig, TextConfig
from encoders.state import faces_backbone, load_encoder
from encoders.vqvae import FeatureDecoder
from mm.batch import Batch
from mm.config import AlignConfig, TrainConfig
from mm.data.module import DataConfig
from mm.model.multimodal import ModelConfig
from mm.train.optim import OptimConfig, build_optimizer, decays, learning_rate

NO_STAGES = ScheduleConfig(kind="joint")


@dataclass(frozen=True)
class PretrainConfig:
    """How one modality's VQ-VAE trains."""

    steps: int = 400
    """Optimizer steps of the whole run."""
    batch_size: int = 128
    """Images, audio clips or captions per step, over all processes."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is bf16 autocast where the processor has it."""
    checkpoint_every: int = 200
    """Steps between checkpoints to resume from."""
    accelerator: str = "auto"
    """Lightning's: auto, cpu, gpu, …"""
    devices: int | Literal["auto"] = "auto"
    """How many of them."""
    strategy: str = "auto"
    """Any Lightning strategy: auto, ddp, …"""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: it must be at least 1")


@dataclass(frozen=True)
class VQVAEConfig:
    """All settings of one modality's VQ-VAE."""

    modality: Literal["image", "audio", "text"] = "image"
    """Whose VQ-VAE is trained; the settings of the other two are not read."""
    name: str | None = None
    """The run is written to <runs>/<name>; vqvae_<modality> by default."""
    runs: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Of the initial weights and the order of the samples."""
    resume: bool = False
    """Go on from the newest checkpoint of the run of this name."""
    data: DataConfig = field(default_factory=DataConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: PretrainConfig = field(default_factory=PretrainConfig)


def as_align(config: VQVAEConfig) -> AlignConfig:
    """The same data, encoders and steps in the form that AlignData reads."""
    return AlignConfig(
        seed=config.seed,
        data=config.data,
        model=ModelConfig(modalities=(config.modality,)),
        image=config.image,
        audio=config.audio,
        text=config.text,
        train=TrainConfig(steps=config.train.steps, batch_size=config.train.batch_size),
    )


class VQVAETask(LightningModule):
    """One encoder trained to reconstruct its input from its codes. `vocabulary` (V,) is the scratch text trunk's."""

    def __init__(self, config: VQVAEConfig, vocabulary: Tensor | None = None) -> None:
        super().__init__()
        own = getattr(config, config.modality)
        if own.bottleneck.mode == "continuous":
            raise ValueError(f"{config.modality}.bottleneck.mode=continuous has no codes to train: use both or vq")
        if own.frozen and own.trunk == "scratch":
            raise ValueError(
                f"{config.modality}.frozen=true with a trunk from scratch: its VQ-VAE is what is trained; leave it out"
            )
        self.config, self.modality = config, config.modality
        options = (vocabulary,) if config.modality == "text" else ()
        # Nothing that faces a backbone is trained or saved, so its width does not matter here.
        encoder = ENCODERS[config.modality](own, 1, *options)  # type: ignore[call-arg, arg-type]
        for name, parameter in encoder.named_parameters():
            if faces_backbone(name):
                parameter.requires_grad_(False)
        if own.encoder_weights:
            load_encoder(encoder, own.encoder_weights)
        self.encoders = nn.ModuleDict({config.modality: encoder})

    @property
    def encoder(self) -> Any:
        """The Encoder of the one modality."""
        return self.encoders[self.modality]

    @property
    def decodes_features(self) -> bool:
        """Whether a pretrained trunk's features are what is reconstructed, and not pixels, log-mel frames or tokens."""
        return isinstance(self.encoder.decoder, FeatureDecoder)

    def forward(self, batch: Batch) -> EncoderOutput:
        """Those samples of a batch that have the modality -> EncoderOutput with all losses."""
        m, here = self.modality, batch.present[self.modality]
        mask = batch.masks[m][here] if m in batch.masks else None
        target = batch.inputs[m][here] if m in batch.inputs else None
        if m in batch.features:
            features = Features(batch.features[m][here].float(), batch.masks[m][here])
        else:
            features = self.encoder.features(batch.inputs[m][here], mask)
        return self.encoder(features, target, mask if m == "text" else None)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        output = self(batch)
        total = torch.stack([*output.losses.values()]).sum()
        if not torch.isfinite(total):
            broken = ", ".join(name for name, value in output.losses.items() if not torch.isfinite(value))
            raise FloatingPointError(
                f"step {self.global_step}: the {broken} loss is not finite; lower "
                "optim.learning_rate or set train.precision=fp32, then go on with --resume true"
            )
        for name, value in output.losses.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name == "reconstruction")
        for name in ("perplexity", "used", "revived"):
            self.log(name, output.metrics[name].float(), prog_bar=name == "perplexity")
        self.log("learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return total

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config, trunk_factor = self.config, getattr(self.config, self.modality).learning_rate_factor
        groups = [
            {
                "params": [parameter],
                "lr": config.optim.learning_rate * (trunk_factor if ".trunk." in name else 1.0),
                "weight_decay": config.optim.weight_decay * decays(name, parameter),
            }
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        ]
        optimizer = build_optimizer(groups, config.optim)
        steps = max(1, config.train.steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(config.optim, NO_STAGES, min(1.0, (step + 1) / steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Lightning's hook, which by itself refuses a fused optimizer under autocast."""
        if self.config.optim.clip:
            self.log("gradient_norm", nn.utils.clip_grad_norm_(self.parameters(), self.config.optim.clip))


@torch.inference_mode()
def evaluate(task: VQVAETask, batches: Iterable[Batch]) -> dict[str, float]:
    """What the codes keep of a split, in evaluation mode.

    reconstruction: the decoder's loss · image/psnr: dB, over pixels in 0..1 · text/token_accuracy: percent.
    perplexity and used codes (mean over the Q quantizers, of S) are of the whole split's codes; bits_per_token is the
    entropy of those codes, an upper bound of what a token carries, and at most bits_per_token_fixed = Q · log2 S.
    """
    task.eval()
    quantizer = task.encoder.bottleneck.quantizer
    counts = torch.zeros(quantizer.depth, quantizer.size)
    sums: dict[str, float] = {}
    rows = 0
    for batch in batches:
        batch = batch.to(task.device)
        output = task(batch)
        codes = output.codes[output.mask]
        counts += torch.stack([torch.bincount(q, minlength=quantizer.size) for q in codes.T]).cpu()
        found = {"reconstruction": float(output.losses["reconstruction"])} | fidelity(task, batch, output)
        found["tokens_per_sample"] = float(output.mask.sum(1).float().mean())
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value * len(output.mask)
        rows += len(output.mask)
    metrics = {name: value / max(1, rows) for name, value in sums.items()}
    if "image/pixel_error" in metrics:
        metrics["image/psnr"] = -10 * math.log10(max(metrics["image/pixel_error"], 1e-12))
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(share).sum(1)
    return metrics | {
        "perplexity": float(entropy.exp().mean()),
        "used_codes": float((counts > 0).sum(1).float().mean()),
        "codes": float(quantizer.size),
        "bits_per_token": float(entropy.sum() / math.log(2)),
        "bits_per_token_fixed": quantizer.depth * math.log2(quantizer.size),
    }


def fidelity(task: VQVAETask, batch: Batch, output: EncoderOutput) -> dict[str, float]:
    """The reconstruction in the modality's own terms, where it has them: error of pixels in 0..1, right tokens in %."""
    if task.modality == "text":
        ids = task.encoder.token_ids(task.encoder.reconstruct(output.codes))
        right = (ids == batch.inputs["text"][batch.present["text"]])[output.mask]
        return {"text/token_accuracy": 100 * float(right.float().mean())}
    if task.modality == "image" and not task.decodes_features:
        pixels = batch.inputs["image"][batch.present["image"]].float() / 255
        return {"image/pixel_error": float((task.encoder.reconstruct(output.codes) - pixels).square().mean())}
    return {}
