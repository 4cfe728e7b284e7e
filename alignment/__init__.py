"""Alignment losses: functions of plain tensors, and the schedule that weighs them."""

from alignment.progressive import Aligned, DrawnPairs, LossConfig, LossTerms, ProgressiveAlignment
from alignment.schedule import PAIRS, LossWeights, ScheduleConfig, learning_rate_factor, loss_weights, ramp, stage

__all__ = [
    "PAIRS",
    "Aligned",
    "DrawnPairs",
    "LossConfig",
    "LossTerms",
    "LossWeights",
    "ProgressiveAlignment",
    "ScheduleConfig",
    "learning_rate_factor",
    "loss_weights",
    "ramp",
    "stage",
]
