"""The backbone: self-attention → cross-modal attention → mixture of experts, one weight set for all modalities."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass
from torch.utils.checkpoint import checkpoint

from kernels.ranges import check_ranges
from kernels.rms_norm import RMSNorm
from mm.model.attention import Attention
from mm.model.causal import LayerCondition, Memory
from mm.model.held import held, parameters_of
from mm.model.moe import MoE, MoEConfig, MoEOutput
from mm.model.packed import Layout, Look, Reading, pack, unpack


@dataclass(frozen=True)
class BackboneConfig:
    """What all modalities share."""

    width: Annotated[int, "[1, inf)"] = 128
    """D, the width of a token."""
    layers: Annotated[int, "[0, inf)"] = 1
    """Blocks of self-attention, cross-modal attention and experts; 0 pools what the encoders say."""
    heads: Annotated[int, "[1, inf)"] = 4
    """Heads of either attention."""
    dropout: Annotated[float, "[0, 1)"] = 0.0
    """On every residual branch."""
    moe: MoEConfig = field(default_factory=MoEConfig)
    checkpoint: bool = False
    """Gradient checkpointing: keep block inputs only and recompute the rest in backward."""

    def __post_init__(self) -> None:
        check_ranges(self, "model.backbone")


CAUSAL_METHODS = ("read_causally", "keys_values")
"""Methods of a block beside `forward` that are called from outside: its weights have to be whole within them, too."""


@dataclass
class BackboneOutput:
    """What the backbone returns.

    Args:
        readings: the readings that came in, in their order, with new tokens.
        losses: the router's, weighted, by name.
        load: assignments per layer, modality and expert, (layers, M, E).
        seen: of every layer the first reading as others see it, behind self-attention; empty unless asked for.
    """

    readings: list[Reading]
    losses: dict[str, Tensor]
    load: Tensor
    seen: list[Reading] = field(default_factory=list)


@dataclass
class Passed:
    """What some blocks return.

    Args:
        x: tokens of all streams (N, D).
        losses: the router's, weighted, summed by name.
        load: assignments (blocks, M, E).
        seen: of every block tokens (N, D) as others see them; empty unless asked for.
    """

    x: Tensor
    losses: dict[str, Tensor]
    load: Tensor
    seen: list[Tensor] = field(default_factory=list)


for result in (BackboneOutput, Passed):
    register_dataclass(result)


class Block(nn.Module):
    """One pre-norm layer: self-attention, cross-modal attention, experts; tokens (N, D) -> (N, D).

    Args:
        config: widths, heads, dropout and experts.
        modalities: M, how many modalities the experts' load is counted by.
    """

    def __init__(self, config: BackboneConfig, modalities: int) -> None:
        super().__init__()
        width = config.width
        self.self_norm = RMSNorm(width)
        self.self_attention = Attention(width, config.heads)
        self.cross_norm = RMSNorm(width)
        self.cross_attention = Attention(width, config.heads)
        # Cross-modal attention is zero-initialised: a random one would add noise to a backbone that already embeds.
        nn.init.zeros_(self.cross_attention.out_proj.weight)
        nn.init.zeros_(self.cross_attention.out_proj.bias)
        self.moe_norm = RMSNorm(width)
        self.moe = MoE(config.moe, width, modalities)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, layout: Layout) -> tuple[MoEOutput, Tensor]:
        """Let every stream attend to itself, then to the other modalities of its reading, then ask the experts.

        Each side attends to the others as they were before any attended: the order of modalities changes nothing.

        Args:
            x: tokens of all streams (N, D).
            layout: where they stand, and who sees whom.

        Returns:
            MoEOutput with tokens (N, D) and load (M, E), and tokens (N, D) as others see them.
        """
        seen = x + self.dropout(self.self_attention(self.self_norm(x), layout.alone))
        x = self.attend_across(seen, layout.across) if layout.across else seen
        return self.mix_experts(x, layout), seen

    def embedding_parameters(self) -> list[nn.Parameter]:
        """Those that reading one modality alone uses: all but the cross-modal attention's."""
        return parameters_of([self.self_norm, self.self_attention, self.moe_norm, self.moe])

    def attend_across(self, x: Tensor, across: list[Look]) -> Tensor:
        """Tokens (N, D) with what they attend to in other modalities added; a reading of one modality has none."""
        y = self.dropout(self.cross_attention(self.cross_norm(x), across))
        if len(y) == len(x):
            return x + y
        ranges = [torch.arange(look.queries.start, look.queries.stop, device=x.device) for look in across]
        return x.index_add(0, torch.cat(ranges), y.to(x.dtype))

    def read_causally(
        self, x: Tensor, layout: Layout, layer: int, memory: Memory, beside: LayerCondition | None
    ) -> MoEOutput:
        """Let new tokens attend to those before them, then to what they are written beside, then ask the experts.

        Args:
            x: (B, T, D), new tokens of B sequences.
            layout: which of them are real, one sequence behind another.
            layer: the block's number.
            memory: what was read before, which the tokens are added to.
            beside: what is read beside; None for text alone.

        Returns:
            MoEOutput with tokens (B, T, D).
        """
        q, k, v = self.self_attention.project_rows(self.self_norm(x))
        keys, values = memory.extend(layer, k, v)
        x = x + self.dropout(self.self_attention.look(q, keys, values, memory.mask))
        if beside is not None:
            x = x + self.dropout(self.look_beside(x, beside))
        out = self.mix_experts(x.flatten(0, 1), layout)
        return replace(out, x=out.x.view_as(x))

    def keys_values(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, S, D) as others see them -> keys and values (B, H, S, D / H) for whoever attends to them."""
        k, v = self.cross_attention.keys_values(self.cross_norm(seen))
        return k.transpose(1, 2), v.transpose(1, 2)

    def look_beside(self, x: Tensor, beside: LayerCondition) -> Tensor:
        """What tokens (B, T, D) take from a condition; zeros where it has no real token."""
        q = self.cross_attention.queries(self.cross_norm(x))
        # A softmax over nothing is not defined: all positions stand in for none, zeros take the place of what it gives.
        mask = beside.mask | ~beside.attends[:, None]
        y = self.cross_attention.look(q, beside.keys, beside.values, mask[:, None])
        return torch.where(beside.attends[:, None, None], y, 0)

    def mix_experts(self, x: Tensor, layout: Layout) -> MoEOutput:
        """Send all real tokens of all streams through the experts in one call.

        Padding neither counts in the load nor changes: it is dropped, or sent along and masked.

        Args:
            x: tokens of all streams (N, D).
            layout: which are real, and of which modality.

        Returns:
            MoEOutput with tokens (N, D), the experts' output added at real ones, and load (M, E).
        """
        rows = layout.rows
        tokens = x if rows is None else x.index_select(0, rows)
        out = self.moe(self.moe_norm(tokens), layout.modality, layout.real)
        y = self.dropout(out.x).to(x.dtype)
        if rows is not None:
            return replace(out, x=x.index_add(0, rows, y))
        if layout.real is None:
            return replace(out, x=x + y)
        return replace(out, x=x + torch.where(layout.real[:, None], y, 0))


class Backbone(nn.Module):
    """A stack of blocks that all modalities share: readings of streams (B, T, D) -> BackboneOutput.

    Args:
        config: widths, depth, heads, dropout and experts.
        modalities: names of all modalities, in the order of the experts' load.
    """

    def __init__(self, config: BackboneConfig, modalities: Sequence[str]) -> None:
        super().__init__()
        self.checkpoint = config.checkpoint
        self.bias_rate = config.moe.bias_rate
        self.num_experts = config.moe.num_experts
        embeddings = {}
        for m in modalities:
            embeddings[m] = nn.Parameter(torch.randn(config.width) * 0.02)
        # ParameterDict sorts a dict by name: the optimizer's state in older checkpoints is in this order.
        self.modality = nn.ParameterDict(embeddings)
        self.modalities = tuple(modalities)
        self.blocks: Any = nn.ModuleList(Block(config, len(modalities)) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.pipeline: Callable[[list[Reading], bool], Passed] | None = None
        """Passes readings through blocks, fused or not, where processes divide them; None where this one has all."""

    def forward(self, readings: list[Reading], fuse: bool, hold: bool = False, keep: bool = False) -> BackboneOutput:
        """Read streams alone (to embed them) or together (to match them).

        Args:
            readings: of streams (B, T, D); they share one call of the experts in every layer.
            fuse: whether the modalities of a reading attend to each other.
            hold: whether all but the cross-modal attention learns nothing from it.
            keep: whether to return what others see of the first reading.

        Returns:
            BackboneOutput: normed streams (B, T, D), the layers' losses summed by name, load (layers, M, E).
        """
        with held(self.modality.values() if hold else ()):
            tagged = [self.tagged(reading) for reading in readings]
        if self.pipeline is None:
            x, layout = pack(tagged, self.modalities, fuse)
            passed = self.through(self.blocks, x, layout, hold, keep)
        else:
            passed = self.pipeline(tagged, fuse)
        with held(self.norm.parameters() if hold else ()):
            x = self.norm(passed.x)
        seen = [unpack(other, readings, self.modalities)[0] for other in passed.seen]
        return BackboneOutput(unpack(x, readings, self.modalities), passed.losses, passed.load, seen)

    def through(
        self, blocks: Iterable[Any], x: Tensor, layout: Layout, hold: bool = False, keep: bool = False
    ) -> Passed:
        """Pass tokens of all streams (N, D) through blocks, see `forward`."""
        losses: dict[str, Tensor] = {}
        loads = []
        seen = []
        for block in blocks:
            if self.checkpoint and torch.is_grad_enabled():
                draws = draws_numbers(block)
                out, other = checkpoint(read, block, x, layout, hold, use_reentrant=False, preserve_rng_state=draws)
            else:
                out, other = read(block, x, layout, hold)
            if keep:
                seen.append(other)
            x = out.x
            loads.append(out.load)
            for name, value in out.losses.items():
                losses[name] = losses[name] + value if name in losses else value
        load = torch.stack(loads) if loads else self.no_load(x.device)
        return Passed(x, losses, load, seen)

    def no_load(self, device: torch.device) -> Tensor:
        """The load (layers, M, E) of a step in which no token came."""
        return torch.zeros(len(self.blocks), len(self.modalities), self.num_experts, device=device)

    def tagged(self, reading: Reading) -> Reading:
        """Every token (B, T, D) with the embedding (D,) of its modality added."""
        return {m: replace(stream, x=stream.x + self.modality[m]) for m, stream in reading.items()}

    def rebalance(self, load: Tensor) -> None:
        """Move every layer's routing bias against the load of a step.

        Args:
            load: (layers, M, E) assignments, summed over ranks by the caller.
        """
        for block, layer_load in zip(self.blocks, load.sum(1), strict=True):
            block.moe.router.rebalance(layer_load, self.bias_rate)


def read(block: Block, x: Tensor, layout: Layout, hold: bool) -> tuple[MoEOutput, Tensor]:
    """A block's forward, which gradient checkpointing repeats; hold: see `Backbone.forward`."""
    with held(block.embedding_parameters() if hold else ()):
        return block(x, layout)


def draws_numbers(block: nn.Module) -> bool:
    """Whether a forward draws random numbers, which one that is repeated has to draw again."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 and module.training for module in block.modules())
