"""Alignment losses: functions of plain tensors, and the schedule that weighs them."""

from alignment.progressive import Aligned, DrawnPairs, LossConfig, LossTerms, ProgressiveAlignment
from alignment.schedule import LossWeights, Pair, ScheduleConfig, learning_rate_factor, loss_weights, ramp, stage

__all__ = [
    "Aligned",
    "DrawnPairs",
    "LossConfig",
    "LossTerms",
    "LossWeights",
    "Pair",
    "ProgressiveAlignment",
    "ScheduleConfig",
    "learning_rate_factor",
    "loss_weights",
    "ramp",
    "stage",
]
