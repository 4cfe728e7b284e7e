"""Pretraining of one modality's VQ-VAE alone."""

from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from alignment import ScheduleConfig
from encoders import Encoder, EncoderOutput
from encoders.state import faces_backbone, load_encoder
from mm.batch import Batch
from mm.modalities import build_encoder
from mm.model.multimodal import encode
from mm.train.optim import build_optimizer, decays, learning_rate, rate_factor
from mm.train.task import clip_gradients, not_finite
from mm.train.vqvae_config import VQVAEConfig, encoder_of

NO_STAGES = ScheduleConfig(kind="joint")


def build_vqvae(config: VQVAEConfig, vocabulary: Tensor | None = None) -> Encoder:
    """The one encoder; nothing of it that faces a backbone trains. vocabulary (V,) is a scratch text trunk's."""
    # What faces a backbone is neither trained nor saved, so its width does not matter.
    encoder = build_encoder(config.modality, encoder_of(config), config.bottleneck, 1, vocabulary)
    for name, parameter in encoder.named_parameters():
        if faces_backbone(name):
            parameter.requires_grad_(False)
    if config.encoder_weights is not None:
        load_encoder(encoder, config.encoder_weights)
    return encoder


class VQVAETask(LightningModule):
    """Trains the encoder, which it is handed, to reconstruct its input from its codes."""

    def __init__(self, config: VQVAEConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.modality = config.modality
        self.encoders = nn.ModuleDict({config.modality: encoder})

    @property
    def encoder(self) -> Any:
        """The Encoder of the one modality."""
        return self.encoders[self.modality]

    def forward(self, batch: Batch) -> EncoderOutput:
        """Those samples (N,) of a batch that have the modality -> EncoderOutput (N, T, D) with all losses."""
        return encode(self.encoder, batch, self.modality, rows=batch.present[self.modality])

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        output = self(batch)
        total = torch.stack(list(output.losses.values())).sum()
        if not torch.isfinite(total):
            broken = [name for name, value in output.losses.items() if not torch.isfinite(value)]
            raise not_finite(self.global_step, f"the {', '.join(broken)} loss")
        for name, value in output.losses.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name == "reconstruction")
        for name in ("perplexity", "used", "revived"):
            self.log(name, output.metrics[name].float(), prog_bar=name == "perplexity")
        self.log("learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return total

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = self.config.optim
        groups = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                rate = config.learning_rate * rate_factor(name, config.rates)
                decay = config.weight_decay * decays(name, parameter)
                groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
        optimizer = build_optimizer(groups)
        steps = self.config.train.steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(config, NO_STAGES, min(1.0, (step + 1) / steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Lightning's hook, which by itself refuses a fused optimizer under autocast."""
        if self.config.optim.clip:
            self.log("gradient_norm", clip_gradients(self, list(self.parameters()), self.config.optim.clip))
