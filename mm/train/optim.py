"""AdamW with a learning rate for each group of parameters, and a learning rate that is a pure function of the step."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from alignment import ScheduleConfig, learning_rate_factor
from mm.config import OptimConfig

BETAS = (0.9, 0.98)
"""AdamW's."""


def learning_rate(config: OptimConfig, schedule: ScheduleConfig, progress: float) -> float:
    """Factor on the base learning rate at `progress` in [0, 1]: linear warm-up, cosine decay, times the stage's
    factor."""
    warm = min(1.0, progress / config.warmup) if config.warmup > 0 else 1.0
    rest = max(0.0, progress - config.warmup) / max(1e-9, 1 - config.warmup)
    cosine = config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))
    return warm * cosine * learning_rate_factor(schedule, progress)


def decays(name: str, parameter: Tensor) -> bool:
    """Matrices decay; norms, biases, embeddings of position, temperatures and codebooks do not."""
    exempt = any(part in name for part in ("position", "codebook", "modality"))
    return parameter.ndim >= 2 and not exempt


def rate_factor(name: str, rates: Mapping[str, float]) -> float:
    """Factor on the learning rate of a parameter: of the patterns that fit its name, the last counts."""
    factors = [factor for pattern, factor in rates.items() if fnmatchcase(name, pattern)]
    return factors[-1] if factors else 1.0


def parameter_groups(named: Iterable[tuple[str, Tensor]], config: OptimConfig) -> list[dict]:
    """Named parameters grouped by (learning rate, decay)."""
    groups: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
    for name, parameter in named:
        rate = rate_factor(name, config.rates) * config.learning_rate
        decay = config.weight_decay * decays(name, parameter)
        groups[rate, decay].append(parameter)
    return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def build_optimizer(groups: list[dict]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=BETAS, fused=True)
