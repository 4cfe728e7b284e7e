"""The backbone: self-attention → cross-modal attention → mixture of experts, one weight set for all modalities."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass
from torch.utils.checkpoint import checkpoint

from kernels.ranges import check_ranges
from mm.model.attention import Attention
from mm.model.moe import MoE, MoEConfig


@dataclass(frozen=True)
class BackboneConfig:
    """What all modalities share."""

    width: Annotated[int, "[1, inf)"] = 128
    """D, the width of a token."""
    layers: Annotated[int, "[1, inf)"] = 2
    """Blocks of self-attention, cross-modal attention and experts."""
    heads: Annotated[int, "[1, inf)"] = 4
    """Heads of either attention."""
    dropout: Annotated[float, "[0, 1)"] = 0.0
    """On every residual branch."""
    moe: MoEConfig = field(default_factory=MoEConfig)
    checkpoint: bool = False
    """Gradient checkpointing: keep block inputs only and recompute the rest in backward."""

    def __post_init__(self) -> None:
        check_ranges(self, "model.backbone")


@dataclass
class Stream:
    """One modality inside the backbone.

    Args:
        x: tokens (B, T, D).
        mask: (B, T) bool, True where a token is real.
        term_mask: (B, T) bool, the tokens that belong to a term, or None.
        real: (N,) int64, the positions of real tokens among all B·T, see `located`.
    """

    x: Tensor
    mask: Tensor
    term_mask: Tensor | None = None
    real: Tensor | None = None

    def located(self) -> "Stream":
        """The stream with `real`. Counting them waits for the device: once a forward, not once a layer."""
        return replace(self, real=self.mask.flatten().nonzero().squeeze(1))


Reading = dict[str, Stream]
"""Streams by modality, of samples that are read together; readings do not see each other."""


@dataclass
class BackboneOutput:
    """What a block or the whole backbone returns.

    Args:
        readings: the readings that came in, in their order, with new tokens.
        losses: the router's, weighted, by name.
        load: assignments per modality and expert, (M, E) of a block, (layers, M, E) of the backbone.
    """

    readings: list[Reading]
    losses: dict[str, Tensor]
    load: Tensor


for result in (Stream, BackboneOutput):
    register_dataclass(result)


class Block(nn.Module):
    """One pre-norm layer: self-attention, cross-modal attention, experts; streams (B, T, D) -> (B, T, D).

    Args:
        config: widths, heads, dropout and experts.
        modalities: names of all modalities, in the order of the experts' load.
    """

    def __init__(self, config: BackboneConfig, modalities: Sequence[str]) -> None:
        super().__init__()
        width = config.width
        self.modalities = tuple(modalities)
        self.self_norm = nn.RMSNorm(width)
        self.self_attention = Attention(width, config.heads)
        self.cross_norm = nn.RMSNorm(width)
        self.cross_attention = Attention(width, config.heads)
        # Cross-modal attention is zero-initialised: a random one would add noise to a backbone that already embeds.
        nn.init.zeros_(self.cross_attention.out_proj.weight)
        nn.init.zeros_(self.cross_attention.out_proj.bias)
        self.moe_norm = nn.RMSNorm(width)
        self.moe = MoE(config.moe, width, len(self.modalities))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, readings: list[Reading], fuse: bool) -> BackboneOutput:
        """Read each reading by itself, then send the tokens of all of them through the experts.

        Args:
            readings: of streams (B, T, D); B may differ between readings.
            fuse: whether the modalities of a reading attend to each other.

        Returns:
            BackboneOutput with load (M, E).
        """
        attended = [self.attend(reading, fuse) for reading in readings]
        return self.mix_experts(attended)

    def attend(self, reading: Reading, fuse: bool) -> Reading:
        """Self-attention of every stream, then cross-modal attention if `fuse` and there are two modalities or more.

        Each side attends to the others as they were before any attended: the order of modalities changes nothing.
        """
        reading = {m: self.attend_self(stream) for m, stream in reading.items()}
        if not fuse or len(reading) < 2:
            return reading
        fused = {}
        for m, stream in reading.items():
            others = [other for name, other in reading.items() if name != m]
            fused[m] = self.attend_others(stream, others)
        return fused

    def attend_self(self, stream: Stream) -> Stream:
        """A stream (B, T, D) with what its tokens attend to among themselves added."""
        x = self.self_norm(stream.x)
        y = self.self_attention(x, x, stream.mask, stream.term_mask)
        return replace(stream, x=stream.x + self.dropout(y))

    def attend_others(self, stream: Stream, others: list[Stream]) -> Stream:
        """A stream (B, T, D) with what its tokens attend to in the other streams (B, T_i, D) added."""
        context = torch.cat([self.cross_norm(other.x) for other in others], 1)
        mask = torch.cat([other.mask for other in others], 1)
        x = self.cross_norm(stream.x)
        y = self.cross_attention(x, context, mask, joined_term_mask(others))
        return replace(stream, x=stream.x + self.dropout(y))

    def mix_experts(self, readings: list[Reading]) -> BackboneOutput:
        """Send all real tokens of all streams of all readings through the experts in one call.

        Padding never reaches the experts: it neither costs nor counts in the load.

        Args:
            readings: of located streams (B, T, D).

        Returns:
            BackboneOutput: the readings with the experts' output added at real tokens; load (M, E).
        """
        flat = []
        rows = []
        modality = []
        for reading in readings:
            for m, stream in reading.items():
                assert stream.real is not None  # Backbone.forward
                number = self.modalities.index(m)
                flat.append(stream.x.flatten(0, 1))
                rows.append(stream.real)
                modality.append(torch.full_like(stream.real, number))
        tokens = torch.cat([x[real] for x, real in zip(flat, rows, strict=True)])
        out = self.moe(self.moe_norm(tokens), torch.cat(modality))
        lengths = [len(real) for real in rows]
        mixed = self.dropout(out.x).split(lengths)
        parts = iter(zip(flat, rows, mixed, strict=True))
        results = []
        for reading in readings:
            result = {}
            for m, stream in reading.items():
                result[m] = add_rows(stream, *next(parts))
            results.append(result)
        return BackboneOutput(results, out.losses, out.load)


def joined_term_mask(streams: list[Stream]) -> Tensor | None:
    """Term masks (B, T_i) of several streams, one after another.

    Returns:
        (B, ΣT_i) bool, False along a stream without a term mask; None where no stream has one.
    """
    if all(stream.term_mask is None for stream in streams):
        return None
    masks = []
    for stream in streams:
        mask = stream.term_mask
        if mask is None:
            mask = torch.zeros_like(stream.mask)
        masks.append(mask)
    return torch.cat(masks, 1)


def add_rows(stream: Stream, flat: Tensor, rows: Tensor, part: Tensor) -> Stream:
    """Add vectors to some tokens of a stream.

    Args:
        stream: gives shape (B, T, D) and masks.
        flat: its tokens (B·T, D).
        rows: (N,) int64, positions in `flat`.
        part: (N, D), added at these positions.
    """
    x = flat.index_add(0, rows, part.to(flat.dtype))
    return replace(stream, x=x.view_as(stream.x))


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
        embeddings = {}
        for m in modalities:
            embeddings[m] = nn.Parameter(torch.randn(config.width) * 0.02)
        # ParameterDict sorts a dict by name: the optimizer's state in older checkpoints is in this order.
        self.modality = nn.ParameterDict(embeddings)
        self.blocks: Any = nn.ModuleList(Block(config, modalities) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)

    def forward(self, readings: list[Reading], fuse: bool) -> BackboneOutput:
        """Read streams alone (to embed them) or together (to match them).

        Args:
            readings: of streams (B, T, D); they share one call of the experts in every layer.
            fuse: whether the modalities of a reading attend to each other.

        Returns:
            BackboneOutput: normed streams (B, T, D), the layers' losses summed by name, load (layers, M, E).
        """
        readings = [self.tagged(reading) for reading in readings]
        losses: dict[str, Tensor] = {}
        loads = []
        for block in self.blocks:
            if self.checkpoint and torch.is_grad_enabled():
                out = checkpoint(block, readings, fuse, use_reentrant=False)
            else:
                out = block(readings, fuse)
            readings = out.readings
            loads.append(out.load)
            for name, value in out.losses.items():
                losses[name] = losses[name] + value if name in losses else value
        readings = [self.normed(reading) for reading in readings]
        return BackboneOutput(readings, losses, torch.stack(loads))

    def tagged(self, reading: Reading) -> Reading:
        """Every token (B, T, D), located, with the embedding (D,) of its modality added."""
        return {m: replace(stream.located(), x=stream.x + self.modality[m]) for m, stream in reading.items()}

    def normed(self, reading: Reading) -> Reading:
        """Every token (B, T, D) through the last norm."""
        return {m: replace(stream, x=self.norm(stream.x)) for m, stream in reading.items()}

    def rebalance(self, load: Tensor) -> None:
        """Move every layer's routing bias against the load of a step.

        Args:
            load: (layers, M, E) assignments, summed over ranks by the caller.
        """
        for block, layer_load in zip(self.blocks, load.sum(1), strict=True):
            block.moe.router.rebalance(layer_load, self.bias_rate)
