"""AdamW with a learning rate for each tower, and a learning rate that is a pure function of the step."""

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alignment import ScheduleConfig, learning_rate_factor
from mm.model.multimodal import MultimodalModel


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, and the course of its learning rate."""

    learning_rate: float = 7e-4
    """At its height, after the warm-up."""
    weight_decay: float = 0.05
    """AdamW's, of matrices only."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's."""
    warmup: float = 0.05
    """Share of the run over which the learning rate rises from zero."""
    final: float = 0.02
    """The learning rate ends at this share of its height."""
    clip: float = 1.0
    """Largest gradient norm; 0 switches clipping off."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.clip < 0:
            raise ValueError(
                f"optim.learning_rate={self.learning_rate} must be positive, optim.weight_decay={self.weight_decay} and"
                f" optim.clip={self.clip} not negative"
            )


def learning_rate(config: OptimConfig, schedule: ScheduleConfig, progress: float) -> float:
    """Factor on the base learning rate at `progress` in [0, 1]:
    linear warm-up, cosine decay, times the stage's factor."""
    warm = min(1.0, progress / config.warmup) if config.warmup > 0 else 1.0
    rest = max(0.0, progress - config.warmup) / max(1e-9, 1 - config.warmup)
    cosine = config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))
    return warm * cosine * learning_rate_factor(schedule, progress)


def decays(name: str, parameter: Tensor) -> bool:
    """Matrices decay; norms, biases, embeddings of position, temperatures and codebooks do not."""
    return parameter.ndim >= 2 and not any(part in name for part in ("position", "codebook", "modality"))


def parameter_groups(
    model: MultimodalModel, loss: nn.Module, config: OptimConfig, trunk_factors: dict[str, float]
) -> list[dict]:
    """Parameters grouped by (learning rate, decay); `trunk_factors` multiplies the learning rate of each modality's
    trunk."""
    groups: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
    named = [*model.named_parameters(), *((f"loss.{n}", p) for n, p in loss.named_parameters())]
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        factor = next((f for m, f in trunk_factors.items() if name.startswith(f"encoders.{m}.trunk.")), 1.0)
        groups[factor * config.learning_rate, config.weight_decay * decays(name, parameter)].append(parameter)
    return [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]


def build_optimizer(groups: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=config.betas, fused=True)
