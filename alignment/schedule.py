"""The progressive schedule: every loss weight is a pure function of progress, the fraction of the run done.

Stage 1: tokenizers and image-text global. Stage 2 adds the fine-grained terms and audio-text. Stage 3 adds matching
and image-audio. There is no counter to lose: a resumed run reads the same weights from the same step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from kernels.errors import UserError
from kernels.ranges import check_ranges

Pair = tuple[str, str]
"""Two modalities that are aligned."""
RAMP = 0.05
"""Progress that a new term takes from zero to its full weight."""


@dataclass(frozen=True)
class ScheduleConfig:
    """When modalities and terms come in."""

    kind: Literal["progressive", "joint", "contrastive_only"] = "contrastive_only"
    """progressive: three stages; joint: every term from the first step;
    contrastive_only: contrastive terms alone, from the first step."""
    stage2: Annotated[float, "[0, 1]"] = 0.15
    """Progress at which the fine-grained terms and audio begin."""
    stage3: Annotated[float, "[0, 1]"] = 0.85
    """Progress at which matching and image-audio begin."""
    learning_rate_factor: Annotated[float, "(0, inf)"] = 0.8
    """The learning rate is multiplied by this at each new stage."""

    def __post_init__(self) -> None:
        check_ranges(self, "schedule")
        if self.stage2 > self.stage3:
            raise UserError(
                f"schedule.stage2={self.stage2} comes after schedule.stage3={self.stage3}: need stage2 <= stage3"
            )


@dataclass(frozen=True)
class LossWeights:
    """Weights of the pair terms at one moment, each a dict from pair to weight in [0, 1]."""

    contrastive: dict[Pair, float]
    fine: dict[Pair, float]
    itm: dict[Pair, float]


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


def loss_weights(config: ScheduleConfig, progress: float, stages: Mapping[Pair, int]) -> LossWeights:
    """Weights of every pair's terms at `progress` in [0, 1]; stages: the pairs, and the stage each comes in."""
    begun = {1: 1.0, 2: 1.0, 3: 1.0}
    if config.kind == "progressive":
        begun[2] = ramp(progress, config.stage2, RAMP)
        begun[3] = ramp(progress, config.stage3, RAMP)
    detail = 0.0 if config.kind == "contrastive_only" else 1.0
    contrastive = {pair: begun[stage] for pair, stage in stages.items()}
    return LossWeights(
        contrastive,
        fine={pair: detail * min(begun[2], weight) for pair, weight in contrastive.items()},
        itm={pair: detail * min(begun[3], weight) for pair, weight in contrastive.items()},
    )


def learning_rate_factor(config: ScheduleConfig, progress: float) -> float:
    """The stage's factor on the learning rate; 1 throughout for the counterfactual schedules, which have no stages."""
    if config.kind != "progressive":
        return 1.0
    return config.learning_rate_factor ** (stage(config, progress) - 1)
