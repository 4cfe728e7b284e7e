"""Alignment losses: functions of plain tensors, and the schedule that weighs them."""

from alignment.gradients import Merge, fork
from alignment.progressive import Aligned, DrawnPairs, LossConfig, LossTerms, ProgressiveAlignment
from alignment.schedule import (
    DETAILED,
    LossWeights,
    Moment,
    Pair,
    ScheduleConfig,
    code_share,
    has_stage,
    highest_temperature,
    learning_rate_factor,
    loss_weights,
    moment,
    ramp,
    stage,
    still_sides,
)

__all__ = [
    "DETAILED",
    "Aligned",
    "DrawnPairs",
    "LossConfig",
    "LossTerms",
    "LossWeights",
    "Merge",
    "Moment",
    "Pair",
    "ProgressiveAlignment",
    "ScheduleConfig",
    "code_share",
    "fork",
    "has_stage",
    "highest_temperature",
    "learning_rate_factor",
    "loss_weights",
    "moment",
    "ramp",
    "stage",
    "still_sides",
]
