"""Continued pre-training: every step reads a batch of the domain and one of what the run already knows."""

import math
from dataclasses import dataclass

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from mm.adapt.task import AdaptTask
from mm.batch import Batch
from mm.config import AlignConfig
from mm.data.module import AlignData
from mm.train.task import AlignTask


@dataclass(frozen=True)
class MixConfig:
    """The weights of two losses, and the stages of the learning rate."""

    domain: float = 0.7
    """Weight of the domain's loss, λ_domain."""
    general: float = 0.3
    """Weight of the loss on the run's own training set, λ_general."""
    stages: int = 4
    """Equal parts of the run, at each of which the learning rate falls."""
    stage_factor: float = 0.8
    """What it is then multiplied by; it begins at optim.learning_rate, without a warm-up."""

    def __post_init__(self) -> None:
        if self.domain <= 0 or self.general < 0:
            raise ValueError(f"mix.domain={self.domain} must be positive and mix.general={self.general} not negative")
        if self.stages < 1 or not 0 < self.stage_factor <= 1:
            raise ValueError(
                f"mix.stages={self.stages} must be at least 1 and mix.stage_factor={self.stage_factor} in (0, 1]"
            )


class ContinuedTask(AdaptTask):
    """All weights of `run` go on training; a step's batch is a dict of the sets' batches, by the names of MixConfig."""

    def __init__(self, run: AlignTask, config: AlignConfig, mix: MixConfig, rates: dict[str, float]) -> None:
        super().__init__(run, config, adapters=False, rates=rates)
        self.mix = mix

    def training_step(self, batch: dict[str, Batch], batch_index: int) -> Tensor:  # type: ignore[override]  # two sets
        self.seed_step()
        total, loads = torch.zeros((), device=self.device), []
        for name, part in batch.items():
            terms, load = self.losses(self.read(part), part)
            self.check_finite(terms)
            total = total + getattr(self.mix, name) * terms.total
            loads.append(load)
            self.log(f"train/{name}", terms.total.detach(), prog_bar=True)
            self.log_dict({f"train/{name}/{term}": value.detach() for term, value in terms.terms.items()})
        self.rebalance(torch.stack(loads).sum(0))
        self.log("learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return total

    def learning_rate_factor(self, progress: float) -> float:
        """`progress` is what will be done after the step: the step that ends a stage belongs to it."""
        stage = max(0, math.ceil(progress * self.mix.stages - 1e-9) - 1)
        return self.mix.stage_factor**stage

    def strengths(self) -> dict[str, list[float]]:
        """What each head adds to the logits of terms' tokens, by attention."""
        return {
            name: module.strength().tolist()
            for name, module in self.model.backbone.named_modules()
            if getattr(module, "term_strength", None) is not None
        }


class MixedData(LightningDataModule):
    """A batch of each set at every step, in an order that resumes; batches of the general set only where it counts."""

    def __init__(self, domain: AlignData, general: AlignData, mix: MixConfig) -> None:
        super().__init__()
        self.sets = {"domain": domain} | ({"general": general} if mix.general else {})

    def train_dataloader(self) -> CombinedLoader:
        for data in self.sets.values():
            data.trainer = self.trainer
        return CombinedLoader({name: data.train_dataloader() for name, data in self.sets.items()}, "min_size")
