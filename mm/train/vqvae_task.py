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
from mm.model.encoding import encode
from mm.train.finite import clip_gradients, not_finite
from mm.train.optim import build_optimizer, decays, learning_rate, rate_factor
from mm.train.ranks import same_lengths
from mm.train.task import step_seed
from mm.train.vqvae_config import VQVAEConfig, encoder_of

NO_STAGES = ScheduleConfig(kind="joint")
"""The alignment schedule of a run without alignment: every factor on the learning rate is 1."""


def build_vqvae(config: VQVAEConfig, vocabulary: Tensor | None = None) -> Encoder:
    """Build the encoder of the one modality, and freeze the part of it that faces a backbone.

    Args:
        config: names the modality, its settings, and the weights to start from.
        vocabulary: (V,) token ids of the training captions, for a scratch text trunk.

    Raises:
        ValueError: the weights do not fit the settings.
    """
    # A width of 1 is enough: the layers that face a backbone are neither trained nor saved.
    width = 1
    encoder = build_encoder(config.modality, encoder_of(config), config.bottleneck, width, vocabulary)
    for name, parameter in encoder.named_parameters():
        if faces_backbone(name):
            parameter.requires_grad_(False)
    if config.encoder_weights is not None:
        load_encoder(encoder, config.encoder_weights)
    return encoder


class VQVAETask(LightningModule):
    """Train an encoder to reconstruct its input from its codes (van den Oord et al. 2017).

    Args:
        config: all settings of the run.
        encoder: of `config.modality`; it is trained in place.
    """

    def __init__(self, config: VQVAEConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.modality = config.modality
        self.draws = torch.Generator()
        """Of what is drawn over the global batch, in the same state on every rank."""
        self.encoders = nn.ModuleDict({config.modality: encoder})

    @property
    def encoder(self) -> Any:
        """The Encoder of the one modality."""
        return self.encoders[self.modality]

    def forward(self, batch: Batch) -> EncoderOutput:
        """Encode and decode a batch; samples without the modality do not count.

        Args:
            batch: N rows of the modality.

        Returns:
            EncoderOutput with tokens (N, T, D) and all losses.
        """
        return encode(self.encoder, same_lengths(batch), self.modality, draws=self.draws)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step -> the sum of all losses (). Raises FloatingPointError where it is not finite."""
        self.draws.manual_seed(step_seed(self.config.seed, self.global_step, 0))
        output = self(batch)
        losses = list(output.losses.values())
        total = torch.stack(losses).sum()
        if not torch.isfinite(total):
            broken = [name for name, value in output.losses.items() if not torch.isfinite(value)]
            raise not_finite(self.global_step, f"the {', '.join(broken)} loss")
        for name, value in output.losses.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name == "reconstruction")
        for name in ("perplexity", "used", "revived"):
            self.log(name, output.metrics[name].float(), prog_bar=name == "perplexity")
        group = self.optimizers().param_groups[0]  # type: ignore[union-attr]
        self.log("learning_rate", group["lr"])
        return total

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with one group a parameter, and the same warm-up and cosine decay as an aligned run."""
        config = self.config.optim
        groups = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                rate = config.learning_rate * rate_factor(name, config.rates)
                decay = config.weight_decay * decays(name, parameter)
                groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
        optimizer = build_optimizer(groups)
        steps = self.config.train.steps

        def factor(step: int) -> float:
            # The schedule runs one step ahead of progress: the first update already moves.
            progress = (step + 1) / steps
            return learning_rate(config, NO_STAGES, min(1.0, progress))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip by `optim.clip`. Lightning's own hook refuses a fused optimizer under autocast."""
        largest = self.config.optim.clip
        if largest:
            parameters: list[Tensor] = list(self.parameters())
            norm = clip_gradients(self, parameters, largest)
            self.log("gradient_norm", norm)
