"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): PEFT's for linear layers, native ones for fused experts.

PEFT adapts modules. The experts' weights are two three-dimensional parameters of one module, which it passes over
without a word; here each expert E gets its own pair of factors, and what is not adapted is listed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from encoders import Encoder
from kernels.errors import UserError
from kernels.ranges import check_ranges
from mm.compress.parametrization import remove_parametrization
from mm.model.moe import EXPERT_WEIGHTS
from mm.optional import require

Shapes = dict[str, tuple[int, ...]]
"""Of parameters by name."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters."""

    rank: Annotated[int, "[1, inf)"] = 16
    """r, the inner width of an update."""
    alpha: Annotated[float, "(0, inf)"] = 32.0
    """An update is scaled by alpha / rank."""
    dropout: Annotated[float, "[0, 1)"] = 0.1
    """On what an update reads; of an expert, the same inputs for all tokens of a step."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Last names of what is adapted: linear layers (q_proj and v_proj are the backbone's attention, linear the heads
    that project onto the embedding, query and value a BERT's attention), and w_in and w_out, the experts."""

    def __post_init__(self) -> None:
        check_ranges(self, "lora")
        if not self.targets:
            raise UserError("lora.targets is empty: name what is adapted, such as q_proj")


@dataclass(frozen=True)
class Coverage:
    """Every weight of a model by name, with its shape: what is adapted, and what is not."""

    targeted: Shapes
    untargeted: Shapes

    def lines(self) -> list[str]:
        """One line for each parameter."""
        found = []
        for mark, part in (("adapted  ", self.targeted), ("untouched", self.untargeted)):
            for name, shape in part.items():
                size = "×".join(map(str, shape)) or "scalar"
                found.append(f"{mark} {name} {size}")
        return found

    def summary(self) -> str:
        """How many numbers are adapted, and how many are not, in one line."""
        return f"adapted: {_counted(self.targeted)}; untouched: {_counted(self.untargeted)}"


class ExpertLora(nn.Module):
    """Fused weights (E, O, I) -> (E, O, I): for each expert the weight plus scale · B A, which starts at zero.

    lora_A (E, r, I) starts uniform in ± 1 / √I, lora_B (E, O, r) at zero. A parametrization of the module that owns the
    weight: the module's forward reads the sum, and does not know of it.
    """

    def __init__(self, weight: Tensor, config: LoraConfig) -> None:
        super().__init__()
        experts, outputs, inputs = weight.shape
        self.scale = config.alpha / config.rank
        self.merged = False
        down = weight.new_empty(experts, config.rank, inputs).uniform_(-1, 1)
        self.lora_A = nn.Parameter(down * inputs**-0.5)
        self.lora_B = nn.Parameter(weight.new_zeros(experts, outputs, config.rank))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, weight: Tensor) -> Tensor:
        if self.merged:
            return weight
        kept = self.dropout(torch.ones_like(self.lora_A[0, 0]))
        return weight + self.update(kept)

    def update(self, kept: Tensor | float = 1.0) -> Tensor:
        """-> (E, O, I); kept (I,) is the dropout of what the experts read."""
        return self.scale * self.lora_B @ (self.lora_A * kept)

    @torch.no_grad()
    def merge(self, weight: Tensor, merged: bool) -> None:
        """Add the update to the weight (E, O, I) in its place, or take it out again."""
        if merged != self.merged:
            weight.add_(self.update(), alpha=1 if merged else -1)
            self.merged = merged


@dataclass(frozen=True)
class ExpertAdapter:
    """Where one fused parameter has its adapter: `weight` of the module `owner`, by its full name."""

    name: str
    owner: Any
    weight: str

    @property
    def chain(self) -> Any:
        """What computes the parameter: where it is packed its unpacking, then the adapter."""
        return self.owner.parametrizations[self.weight]

    @property
    def lora(self) -> ExpertLora:
        return self.chain[-1]


def coverage(model: nn.Module, config: LoraConfig) -> Coverage:
    """What `attach` would adapt. Raises ValueError on a target that matches nothing or has less rank than asked for."""
    linears = _targeted_linears(model, config)
    experts = _targeted_experts(model, config)
    _require_targets(model, config, [*linears, *experts])
    shapes = _shapes(model)
    names = {f"{name}.weight" for name in linears}.union(experts)
    targeted = {name: shape for name, shape in shapes.items() if name in names}
    untargeted = {name: shape for name, shape in shapes.items() if name not in names}
    for name, shape in targeted.items():
        rows, columns = shape[-2:]
        most = min(rows, columns)
        if config.rank > most:
            raise UserError(
                f"lora.rank={config.rank} is larger than {name}, whose matrices are {rows}×{columns}: at most {most}"
            )
    return Coverage(targeted, untargeted)


def attach(model: nn.Module, config: LoraConfig) -> Coverage:
    """Freeze the model and put an adapter on what `config` targets. Raises ValueError as `coverage` does."""
    found = coverage(model, config)
    linears = _targeted_linears(model, config)
    experts = _targeted_experts(model, config)
    model.requires_grad_(False)
    if linears:
        peft = require("peft")
        peft.inject_adapter_in_model(peft_config(config, linears), model)
    for name in experts:
        owner, _, weight = name.rpartition(".")
        module = model.get_submodule(owner)
        adapter = ExpertLora(getattr(module, weight), config)
        parametrize.register_parametrization(module, weight, adapter)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return found


def merge(model: nn.Module, merged: bool = True) -> None:
    """Put every update into its weight, so that it costs nothing; `merged=False` takes them out again.

    Raises ValueError where a weight is packed.
    """
    layers = peft_layers(model)
    experts = list(expert_adapters(model))
    packed = []
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer.get_base_layer()):
            packed.append(name)
    packed += [adapter.name for adapter in experts if len(adapter.chain) > 1]
    if packed:
        raise ValueError(
            f"{packed[0]} is packed in four bits and cannot take its update in place: use merge_and_unload"
        )
    for layer in layers.values():
        if merged:
            layer.merge()
        else:
            layer.unmerge()
    for adapter in experts:
        adapter.lora.merge(adapter.chain.original, merged)


def merge_and_unload(model: nn.Module) -> None:
    """Merge and drop the adapters: the plain model again, with other weights, in evaluation mode."""
    model.eval()
    for name, layer in peft_layers(model).items():
        base = layer.get_base_layer()
        if parametrize.is_parametrized(base, "weight"):
            remove_parametrization(base, "weight")
        layer.merge()
        parent, _, last = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, last, base)
    for adapter in expert_adapters(model):
        remove_parametrization(adapter.owner, adapter.weight)


def adapter_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The adapters' own tensors: PEFT's under the names that PEFT gives them in a file, and the experts'."""
    linear = {}
    for name, layer in peft_layers(model).items():
        for side in ("lora_A", "lora_B"):
            factor = getattr(layer, side)["default"]
            linear[f"base_model.model.{name}.{side}.weight"] = factor.weight
    experts = {}
    for adapter in expert_adapters(model):
        for side in ("lora_A", "lora_B"):
            experts[f"{adapter.name}.{side}"] = getattr(adapter.lora, side)
    return linear, experts


def peft_config(config: LoraConfig, linears: list[str]) -> Any:
    """PEFT's own settings of an adapter on these linear layers."""
    return require("peft").LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=sorted(linears)
    )


def peft_layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's layers by the name of the linear layer that each stands for."""
    layers = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            layers[name] = module
    return layers


def expert_adapters(model: nn.Module) -> Iterator[ExpertAdapter]:
    """Every fused parameter with an adapter, in the order of the model's modules.

    A fused parameter that is only packed has none.
    """
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for name, owner in modules:
        for weight in EXPERT_WEIGHTS:
            if parametrize.is_parametrized(owner, weight):
                found = ExpertAdapter(f"{name}.{weight}", owner, weight)
                if isinstance(found.lora, ExpertLora):
                    yield found


def _targeted_linears(model: nn.Module, config: LoraConfig) -> list[str]:
    """Names of the linear layers that the targets name, without those of frozen trunks, whose features are cached."""
    frozen = _frozen_trunks(model)
    return [name for name in _linears(model) if _last(name) in config.targets and not name.startswith(frozen)]


def _frozen_trunks(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names in trunks that do not train: a step reads their cached features and never runs them."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, Encoder) and module.frozen_trunk:
            found.append(f"{name}.trunk.")
    return tuple(found)


def _targeted_experts(model: nn.Module, config: LoraConfig) -> list[str]:
    """Names of the fused parameters that the targets name."""
    targets = set(config.targets).intersection(EXPERT_WEIGHTS)
    return [name for name, shape in _shapes(model).items() if _last(name) in targets and len(shape) == 3]


def _require_targets(model: nn.Module, config: LoraConfig, found: list[str]) -> None:
    """Raises ValueError where a target names none of the weights that were found."""
    frozen = _frozen_trunks(model)
    for target in config.targets:
        if not any(_last(name) == target for name in found):
            unreached = [name for name in _linears(model) if _last(name) == target and name.startswith(frozen)]
            if unreached:
                raise UserError(
                    f"lora.targets: {target!r} is only in a frozen trunk ({unreached[0]}), whose cached features are"
                    " read in its place, so that it would never train: leave the target out, or adapt a run that was"
                    " trained with that encoder's frozen=false"
                )
            there = {_last(name) for name in _linears(model)}.union(EXPERT_WEIGHTS)
            raise UserError(
                f"lora.targets: {target!r} is no linear layer nor expert weight of this model; it has"
                f" {', '.join(sorted(there))}"
            )


def _linears(model: nn.Module) -> list[str]:
    """Names of all linear layers."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _shapes(model: nn.Module) -> Shapes:
    """Every parameter's shape by name; a packed one has the name and shape of what it unpacks to."""
    found = {}
    for name, parameter in model.named_parameters():
        owner, packed, rest = name.partition(".parametrizations.")
        if packed:
            weight = rest.partition(".")[0]
            unpacked = getattr(model.get_submodule(owner), weight)
            found[f"{owner}.{weight}"] = tuple(unpacked.shape)
        else:
            found[name] = tuple(parameter.shape)
    return found


def _counted(part: Shapes) -> str:
    numbers = sum(torch.Size(shape).numel() for shape in part.values())
    return f"{len(part)} parameters of {numbers:,} numbers"


def _last(name: str) -> str:
    return name.rpartition(".")[2]
