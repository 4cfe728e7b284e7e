"""A model for inference whose large weights are an engine's integers, put where its float weights are."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from mm.compress.integers import Packed
from mm.compress.quantize import QuantizedLinear
from mm.model.multimodal import MultimodalModel


def with_integers(
    model: MultimodalModel,
    packed: Mapping[str, Packed],
    linear: Callable[[Packed, Tensor | None], nn.Module],
    other: Callable[[nn.Module, str, Packed], None],
) -> MultimodalModel:
    """Put an engine's layers in the place of those of a model whose experts are the engine's already.

    Args:
        model: of `prepare`; it is changed.
        packed: weights by name, see `mm.compress.quantize.places`.
        linear: makes a layer of a weight (O, I) and a bias (O,) or None.
        other: gives a module its tensor of this name: of a convolution or a table.
    """
    for name, weight in packed.items():
        owner_name, _, last = name.rpartition(".")
        if last in ("w_in", "w_out") or not has_module(model, owner_name):
            continue
        owner = model.get_submodule(owner_name)
        if type(owner) in (nn.Linear, QuantizedLinear):
            model.set_submodule(owner_name, linear(weight, owner.bias))  # type: ignore[arg-type]
        else:
            other(owner, last, weight)
    return model


def has_module(model: nn.Module, name: str) -> bool:
    """Whether a model has a module of this name: what an inference does not read is gone."""
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True
