"""Weights that are computed from others, such as packed ones, as plain parameters again."""

import torch
from torch import nn
from torch.nn.utils import parametrize


@torch.no_grad()
def remove_parametrization(owner: nn.Module, weight: str) -> None:
    """A weight that is computed from others becomes a plain parameter with the value it has now."""
    value = getattr(owner, weight).clone()
    parametrize.remove_parametrizations(owner, weight, leave_parametrized=True)
    delattr(owner, weight)
    owner.register_parameter(weight, nn.Parameter(value))
