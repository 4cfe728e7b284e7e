"""The progressive schedule: every loss weight is a pure function of progress, the fraction of the run done.

Stage 1: tokenizers and image-text global. Stage 2 adds the fine-grained terms and audio-text. Stage 3 adds matching
and image-audio. There is no counter to lose: a resumed run reads the same weights from the same step.
"""

from dataclasses import dataclass
from typing import Literal

PAIRS: tuple[tuple[str, str], ...] = (("image", "text"), ("audio", "text"), ("image", "audio"))


@dataclass(frozen=True)
class ScheduleConfig:
    """When modalities and terms come in."""

    kind: Literal["progressive", "joint", "contrastive_only"] = "progressive"
    """progressive: three stages; joint: every term from the first step;
    contrastive_only: contrastive terms alone, from the first step."""
    stage2: float = 0.15
    """Progress at which the fine-grained terms and audio begin."""
    stage3: float = 0.85
    """Progress at which matching and image-audio begin."""
    ramp: float = 0.05
    """Progress a new term takes from zero to its full weight."""
    learning_rate_factor: float = 0.8
    """The learning rate is multiplied by this at each new stage."""

    def __post_init__(self) -> None:
        if not 0 <= self.stage2 <= self.stage3 <= 1:
            raise ValueError(
                f"schedule.stage2={self.stage2} and schedule.stage3={self.stage3}: need 0 <= stage2 <= stage3 <= 1"
            )


@dataclass(frozen=True)
class LossWeights:
    """Weights of the pair terms at one moment, each a dict from pair to weight in [0, 1]."""

    contrastive: dict[tuple[str, str], float]
    fine: dict[tuple[str, str], float]
    itm: dict[tuple[str, str], float]


def ramp(progress: float, start: float, length: float) -> float:
    """0 before `start`, 1 after `start + length`, smooth (C¹) between: 3x² - 2x³."""
    if length <= 0:
        return float(progress >= start)
    x = min(max((progress - start) / length, 0.0), 1.0)
    return x * x * (3 - 2 * x)


def stage(config: ScheduleConfig, progress: float) -> int:
    """1, 2 or 3. A schedule without stages is in stage 3 throughout."""
    if config.kind != "progressive":
        return 3
    return 1 + (progress >= config.stage2) + (progress >= config.stage3)


def loss_weights(config: ScheduleConfig, progress: float) -> LossWeights:
    """Weights of every pair's terms at `progress` in [0, 1]."""
    if config.kind == "progressive":
        second = ramp(progress, config.stage2, config.ramp)
        third = ramp(progress, config.stage3, config.ramp)
    else:
        second = third = 1.0
    detail = 0.0 if config.kind == "contrastive_only" else 1.0
    begins = {("image", "text"): 1.0, ("audio", "text"): second, ("image", "audio"): third}
    return LossWeights(
        contrastive=begins,
        fine={pair: detail * min(second, weight) for pair, weight in begins.items()},
        itm={pair: detail * min(third, weight) for pair, weight in begins.items()},
    )


def learning_rate_factor(config: ScheduleConfig, progress: float) -> float:
    """The stage's factor on the learning rate; 1 throughout for the counterfactual schedules, which have no stages."""
    if config.kind != "progressive":
        return 1.0
    return config.learning_rate_factor ** (stage(config, progress) - 1)
