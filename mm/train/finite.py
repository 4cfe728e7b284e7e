"""Losses and gradients that are no numbers: found before they reach the weights, and named."""

from collections.abc import Sequence

import torch
from lightning import LightningModule
from torch import Tensor

from alignment import LossTerms
from kernels.errors import DivergedError
from mm.parallel.gradients import clip_by_norm
from mm.train.captured import StepOutcome


def check_finite(terms: LossTerms | StepOutcome, step: int) -> None:
    """Stop at the first step whose loss is not a number.

    Args:
        terms: named losses and their sum.
        step: named in the message.

    Raises:
        FloatingPointError: the sum is not finite; the message names the terms that are not.
    """
    if torch.isfinite(terms.total):
        return
    broken = [name for name, value in terms.terms.items() if not torch.isfinite(value)]
    raise not_finite(step, ", ".join(broken) or "the sum of losses")


def clip_gradients(task: LightningModule, parameters: list[Tensor], largest: float) -> Tensor:
    """Scale gradients so that their joint norm is at most `largest`.

    Args:
        task: names the parameters and the step in an error.
        parameters: those whose gradients are scaled.
        largest: the bound of the norm.

    Returns:
        the norm () before.

    Raises:
        FloatingPointError: the norm is not finite; the message names the parameters whose gradient is not.
    """
    norm = clip_by_norm(parameters, largest)
    if not torch.isfinite(norm):
        # Finite gradients may still have an infinite norm.
        names = _listed(broken_gradients(task)) or "all parameters together"
        raise not_finite(task.global_step, f"the gradient of {names}")
    return norm


def broken_gradients(task: LightningModule) -> list[str]:
    """Names of the parameters whose gradient is not finite."""
    names = []
    for name, parameter in task.named_parameters():
        gradient = parameter.grad
        if gradient is not None and not torch.isfinite(gradient).all():
            names.append(name)
    return names


def not_finite(step: int, what: str) -> DivergedError:
    """The error with which a diverged run ends.

    Args:
        step: at which it diverged.
        what: names what is not finite.
    """
    return DivergedError(
        f"step {step}: {what} is not finite; lower optim.learning_rate or set train.precision=fp32,"
        " then go on with --resume true"
    )


def _listed(names: Sequence[str]) -> str:
    """The first three names, and whether there are more."""
    shown = ", ".join(names[:3])
    return f"{shown} …" if len(names) > 3 else shown
