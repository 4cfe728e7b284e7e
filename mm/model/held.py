"""Weights that take part in a forward and learn nothing from it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def held(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """A forward within has no gradient of these parameters; one before or after has."""
    training = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in training:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in training:
            parameter.requires_grad_(True)


def parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """All parameters of several modules."""
    return [parameter for module in modules for parameter in module.parameters()]
