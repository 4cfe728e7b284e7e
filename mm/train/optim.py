"""AdamW with a learning rate for each group of parameters, and a learning rate that is a pure function of the step."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from alignment import ScheduleConfig, learning_rate_factor
from mm.config import OptimConfig

BETAS = (0.9, 0.98)
"""AdamW's decay rates of the first and second moment."""


def learning_rate(config: OptimConfig, schedule: ScheduleConfig, progress: float) -> float:
    """Factor on the base learning rate: linear warm-up, then cosine decay, times the factor of the loss's stage.

    Args:
        config: the share of the run that warms up, and the factor at the end.
        schedule: of the alignment loss, whose stages may have factors of their own.
        progress: share of the run that is done, in [0, 1].
    """
    warm = 1.0
    if config.warmup > 0:
        warm = min(1.0, progress / config.warmup)
    after_warmup = max(0.0, progress - config.warmup)
    rest = after_warmup / max(1e-9, 1 - config.warmup)
    angle = math.pi * min(1.0, rest)
    cosine = config.final + (1 - config.final) * 0.5 * (1 + math.cos(angle))
    return warm * cosine * learning_rate_factor(schedule, progress)


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies to a parameter.

    Matrices decay; norms, biases, position embeddings, modality embeddings, temperatures and codebooks do not.
    """
    exempt = any(part in name for part in ("position", "codebook", "modality"))
    return parameter.ndim >= 2 and not exempt


def rate_factor(name: str, rates: Mapping[str, float]) -> float:
    """Factor on the learning rate of a parameter.

    Args:
        name: of the parameter.
        rates: factors by name pattern, as `fnmatch` reads it; the last pattern that fits counts.

    Returns:
        the factor, 1 where no pattern fits.
    """
    factors = [factor for pattern, factor in rates.items() if fnmatchcase(name, pattern)]
    return factors[-1] if factors else 1.0


def parameter_groups(named: Iterable[tuple[str, Tensor]], config: OptimConfig) -> list[dict]:
    """Group parameters by learning rate and weight decay, as torch's optimizers take them.

    Args:
        named: parameters with their names, in the order in which they stay within a group.
        config: learning rate, factors on it by name pattern, and weight decay.

    Returns:
        groups with `params`, `lr` and `weight_decay`, in the order of their first parameter.
    """
    grouped: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
    for name, parameter in named:
        rate = rate_factor(name, config.rates) * config.learning_rate
        decay = config.weight_decay * decays(name, parameter)
        grouped[rate, decay].append(parameter)
    groups = []
    for (rate, decay), parameters in grouped.items():
        groups.append({"params": parameters, "lr": rate, "weight_decay": decay})
    return groups


class AdamW(torch.optim.AdamW):
    """Fused AdamW (Loshchilov & Hutter 2019) of parameters of which processes may divide some and not others: its one
    operation for all of a group takes either kind alone."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move parameters by their gradients; closure: see torch's."""
        groups = self.param_groups
        self.param_groups = [part for group in groups for part in by_kind(group)]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups


def by_kind(group: dict) -> list[dict]:
    """A group of parameters as it is, or in two where some are whole and some are what processes divide."""
    whole: list[Tensor] = []
    divided: list[Tensor] = []
    for parameter in group["params"]:
        (divided if isinstance(parameter, DTensor) else whole).append(parameter)
    if not whole or not divided:
        return [group]
    return [{**group, "params": whole}, {**group, "params": divided}]


def build_optimizer(groups: list[dict]) -> torch.optim.Optimizer:
    """Fused AdamW over groups as `parameter_groups` returns them."""
    return AdamW(groups, betas=BETAS, fused=True)
