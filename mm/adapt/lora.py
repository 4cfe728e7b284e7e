"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): PEFT's for linear layers, native ones for fused experts.

PEFT adapts modules. The experts' weights are two three-dimensional parameters of one module, which it passes over
without a word; here each expert E gets its own pair of factors, and what is not adapted is listed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mm.optional import require

EXPERTS = ("w_in", "w_out")
"""The fused parameters of mm.model.moe.MoE."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters."""

    rank: int = 16
    """r, the inner width of an update."""
    alpha: float = 32.0
    """An update is scaled by alpha / rank."""
    dropout: float = 0.1
    """On what an update reads; of an expert, the same inputs for all tokens of a step."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Last names of what is adapted: linear layers (q_proj and v_proj are the backbone's attention, linear the heads
    that project onto the embedding, query and value a BERT's attention), and w_in and w_out, the experts."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"lora: rank={self.rank} must be at least 1, alpha={self.alpha} positive and"
                f" dropout={self.dropout} in [0, 1)"
            )
        if not self.targets:
            raise ValueError("lora.targets is empty: name what is adapted, such as q_proj")


@dataclass(frozen=True)
class Coverage:
    """Every weight of a model by name, with its shape: what is adapted, and what is not."""

    targeted: dict[str, tuple[int, ...]]
    untargeted: dict[str, tuple[int, ...]]

    def lines(self) -> list[str]:
        """One line for each parameter."""
        return [
            f"{mark} {name} {'×'.join(map(str, shape)) or 'scalar'}"
            for mark, part in (("adapted  ", self.targeted), ("untouched", self.untargeted))
            for name, shape in part.items()
        ]

    def summary(self) -> str:
        def size(part: dict[str, tuple[int, ...]]) -> str:
            return f"{len(part)} parameters of {sum(torch.Size(s).numel() for s in part.values()):,} numbers"

        return f"adapted: {size(self.targeted)}; untouched: {size(self.untargeted)}"


class ExpertLora(nn.Module):
    """Fused weights (E, O, I) -> (E, O, I): for each expert the weight plus scale · B A, which starts at zero."""

    def __init__(self, weight: Tensor, config: LoraConfig) -> None:
        super().__init__()
        experts, outputs, inputs = weight.shape
        self.scale, self.merged = config.alpha / config.rank, False
        self.lora_A = nn.Parameter(weight.new_empty(experts, config.rank, inputs).uniform_(-1, 1) * inputs**-0.5)
        self.lora_B = nn.Parameter(weight.new_zeros(experts, outputs, config.rank))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, weight: Tensor) -> Tensor:
        if self.merged:
            return weight
        kept = self.dropout(torch.ones_like(self.lora_A[0, 0]))
        return weight + self.update(kept)

    def update(self, kept: Tensor | float = 1.0) -> Tensor:
        """-> (E, O, I)."""
        return self.scale * self.lora_B @ (self.lora_A * kept)

    @torch.no_grad()
    def merge(self, weight: Tensor, merged: bool) -> None:
        """Add the update to the weight (E, O, I) in its place, or take it out again."""
        if merged != self.merged:
            weight.add_(self.update(), alpha=1 if merged else -1)
            self.merged = merged


def coverage(model: nn.Module, config: LoraConfig) -> Coverage:
    """What `attach` would adapt. Raises ValueError on a target that matches nothing or has less rank than asked for."""
    linears, experts = _matching(model, config)
    targeted = {f"{name}.weight" for name in linears} | set(experts)
    shapes = _shapes(model)
    for target in config.targets:
        if not any(_last(name) == target for name in (*linears, *experts)):
            there = sorted({_last(n) for n, m in model.named_modules() if isinstance(m, nn.Linear)} | set(EXPERTS))
            raise ValueError(
                f"lora.targets: {target!r} is no linear layer nor expert weight of this model; it has"
                f" {', '.join(there)}"
            )
    for name in targeted:
        if config.rank > (most := min(shapes[name][-2:])):
            raise ValueError(
                f"lora.rank={config.rank} is larger than {name}, whose matrices are"
                f" {shapes[name][-2]}×{shapes[name][-1]}: at most {most}"
            )
    return Coverage(
        {n: s for n, s in shapes.items() if n in targeted}, {n: s for n, s in shapes.items() if n not in targeted}
    )


def attach(model: nn.Module, config: LoraConfig) -> Coverage:
    """Freeze the model and put an adapter on what `config` targets. Raises ValueError as `coverage` does."""
    found = coverage(model, config)
    linears, experts = _matching(model, config)
    model.requires_grad_(False)
    if linears:
        peft = require("peft")
        peft.inject_adapter_in_model(peft_config(config, linears), model)
    for name in experts:
        owner, weight = model.get_submodule(name.rpartition(".")[0]), _last(name)
        parametrize.register_parametrization(owner, weight, ExpertLora(getattr(owner, weight), config))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return found


def merge(model: nn.Module, merged: bool = True) -> None:
    """Put every update into its weight, so that it costs nothing; `merged=False` takes them out again.

    Raises ValueError where a weight is packed.
    """
    layers, experts = peft_layers(model), list(_expert_adapters(model))
    packed = [name for name, layer in layers.items() if parametrize.is_parametrized(layer.get_base_layer())]
    packed += [name for name, owner, weight in experts if len(owner.parametrizations[weight]) > 1]
    if packed:
        raise ValueError(f"{packed[0]} is packed in four bits and cannot take its update in place: bake the model")
    for layer in layers.values():
        if merged:
            layer.merge()
        else:
            layer.unmerge()
    for _, owner, weight in experts:
        chain = owner.parametrizations[weight]
        chain[0].merge(chain.original, merged)


def merge_and_unload(model: nn.Module) -> None:
    """Merge and drop the adapters: the plain model again, with other weights, in evaluation mode."""
    model.eval()
    for name, layer in peft_layers(model).items():
        parent, _, last = name.rpartition(".")
        base = layer.get_base_layer()
        if parametrize.is_parametrized(base, "weight"):
            remove_parametrization(base, "weight")
        layer.merge()
        setattr(model.get_submodule(parent), last, base)
    for _, owner, weight in _expert_adapters(model):
        remove_parametrization(owner, weight)


@torch.no_grad()
def remove_parametrization(owner: nn.Module, weight: str) -> None:
    """A weight that is computed from others becomes a plain parameter with the value it has now."""
    value = getattr(owner, weight).clone()
    parametrize.remove_parametrizations(owner, weight, leave_parametrized=True)
    delattr(owner, weight)
    owner.register_parameter(weight, nn.Parameter(value))


def adapter_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The adapters' own tensors: PEFT's under the names that PEFT gives them in a file, and the experts'."""
    linear = {
        f"base_model.model.{name}.{side}.weight": getattr(layer, side)["default"].weight
        for name, layer in peft_layers(model).items()
        for side in ("lora_A", "lora_B")
    }
    experts = {
        f"{name}.{side}": getattr(owner.parametrizations[weight][-1], side)
        for name, owner, weight in _expert_adapters(model)
        for side in ("lora_A", "lora_B")
    }
    return linear, experts


def peft_config(config: LoraConfig, linears: list[str]) -> Any:
    """PEFT's own settings of an adapter on these linear layers."""
    return require("peft").LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=sorted(linears)
    )


def _matching(model: nn.Module, config: LoraConfig) -> tuple[list[str], list[str]]:
    """Names of the linear layers and of the fused parameters that the targets name."""
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and _last(n) in config.targets]
    experts = [
        n
        for n, shape in _shapes(model).items()
        if _last(n) in config.targets and _last(n) in EXPERTS and len(shape) == 3
    ]
    return linears, experts


def peft_layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's layers by the name of the linear layer that each stands for."""
    return {name: m for name, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "get_base_layer")}


def _expert_adapters(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """(full name, the module that owns it, its last name) of every fused parameter with an adapter."""
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for name, owner in modules:
        for weight in EXPERTS:
            adapted = parametrize.is_parametrized(owner, weight)
            if adapted and isinstance(owner.parametrizations[weight][-1], ExpertLora):
                yield f"{name}.{weight}", owner, weight


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Every parameter's shape by name; a packed one has the name and shape of what it unpacks to."""
    found = {}
    for name, parameter in model.named_parameters():
        owner, packed, rest = name.partition(".parametrizations.")
        weight = rest.partition(".")[0]
        value = getattr(model.get_submodule(owner), weight) if packed else parameter
        found[f"{owner}.{weight}" if packed else name] = tuple(value.shape)
    return found


def _last(name: str) -> str:
    return name.rpartition(".")[2]
