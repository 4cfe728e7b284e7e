"""The backbone: self-attention → cross-modal attention → mixture of experts, one weight set for all modalities."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass
from torch.utils.checkpoint import checkpoint

from mm.model.attention import Attention
from mm.model.moe import MoE, MoEConfig


@dataclass(frozen=True)
class BackboneConfig:
    """What all modalities share."""

    width: int = 128
    """D, the width of a token."""
    layers: int = 2
    """Blocks of self-attention, cross-modal attention and experts."""
    heads: int = 4
    """Heads of either attention."""
    dropout: float = 0.0
    """On every residual branch."""
    moe: MoEConfig = field(default_factory=MoEConfig)
    checkpoint: bool = False
    """Gradient checkpointing: keep block inputs only and recompute the rest in backward."""


@dataclass
class Stream:
    """One modality inside the backbone: x (B, T, D), mask (B, T) bool, True where real; term_mask (B, T) bool, the
    tokens that belong to a term, or None."""

    x: Tensor
    mask: Tensor
    term_mask: Tensor | None = None


Reading = dict[str, Stream]
"""Streams by modality, of samples that are read together; readings do not see each other."""


@dataclass
class BackboneOutput:
    """readings: as they came, read; losses: the router's, by name; load (layers, M, E), of a block (M, E): assignments
    per expert and modality."""

    readings: list[Reading]
    losses: dict[str, Tensor]
    load: Tensor


for result in (Stream, BackboneOutput):
    register_dataclass(result)


class Block(nn.Module):
    """Pre-norm block: readings of streams (B, T, D) -> BackboneOutput. Without `fuse`, or with one modality, there is
    no cross-modal attention."""

    def __init__(self, config: BackboneConfig, modalities: Sequence[str]) -> None:
        super().__init__()
        width = config.width
        self.modalities = tuple(modalities)
        self.self_norm = nn.RMSNorm(width)
        self.self_attention = Attention(width, config.heads)
        self.cross_norm = nn.RMSNorm(width)
        self.cross_attention = Attention(width, config.heads)
        # From scratch, its output would be noise in the middle of a backbone that already embeds.
        nn.init.zeros_(self.cross_attention.out_proj.weight)
        nn.init.zeros_(self.cross_attention.out_proj.bias)
        self.moe_norm = nn.RMSNorm(width)
        self.moe = MoE(config.moe, width, len(self.modalities))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, readings: list[Reading], fuse: bool) -> BackboneOutput:
        attended = [self.attend(reading, fuse) for reading in readings]
        return self.mix_experts(attended)

    def attend(self, reading: Reading, fuse: bool) -> Reading:
        reading = {m: self.attend_self(stream) for m, stream in reading.items()}
        if not fuse or len(reading) < 2:
            return reading
        # Each side looks at the others as they were before any looked: the order of modalities changes nothing.
        fused = {}
        for m, stream in reading.items():
            others = [other for name, other in reading.items() if name != m]
            fused[m] = self.attend_others(stream, others)
        return fused

    def attend_self(self, stream: Stream) -> Stream:
        x = self.self_norm(stream.x)
        y = self.self_attention(x, x, stream.mask, stream.term_mask)
        return replace(stream, x=stream.x + self.dropout(y))

    def attend_others(self, stream: Stream, others: list[Stream]) -> Stream:
        context = torch.cat([self.cross_norm(other.x) for other in others], 1)
        mask = torch.cat([other.mask for other in others], 1)
        y = self.cross_attention(self.cross_norm(stream.x), context, mask, joined_term_mask(others))
        return replace(stream, x=stream.x + self.dropout(y))

    def mix_experts(self, readings: list[Reading]) -> BackboneOutput:
        """All real tokens of all streams of all readings pass the experts in one call; padding never reaches them."""
        flat, rows, modality = [], [], []
        for reading in readings:
            for m, stream in reading.items():
                real = stream.mask.flatten().nonzero().squeeze(1)
                flat.append(stream.x.flatten(0, 1))
                rows.append(real)
                modality.append(torch.full_like(real, self.modalities.index(m)))
        tokens = torch.cat([x[real] for x, real in zip(flat, rows, strict=True)])
        out = self.moe(self.moe_norm(tokens), torch.cat(modality))
        lengths = [len(real) for real in rows]
        parts = iter(zip(flat, rows, self.dropout(out.x).split(lengths), strict=True))
        mixed = []
        for reading in readings:
            mixed.append({m: add_rows(stream, *next(parts)) for m, stream in reading.items()})
        return BackboneOutput(mixed, out.losses, out.load)


def joined_term_mask(streams: list[Stream]) -> Tensor | None:
    """The term masks (B, T) of streams beside each other (B, ΣT); None where no stream has one."""
    if all(stream.term_mask is None for stream in streams):
        return None
    masks = [torch.zeros_like(s.mask) if s.term_mask is None else s.term_mask for s in streams]
    return torch.cat(masks, 1)


def add_rows(stream: Stream, flat: Tensor, rows: Tensor, part: Tensor) -> Stream:
    """A stream with `part` (N, D) added at the rows (N,) of its tokens `flat` (B·T, D)."""
    x = flat.index_add(0, rows, part.to(flat.dtype))
    return replace(stream, x=x.view_as(stream.x))


class Backbone(nn.Module):
    """Readings of streams by modality (B, T, D) -> BackboneOutput.

    `fuse` turns cross-modal attention on: one reading embeds, the other matches. All readings pass the experts in one
    call each layer. modalities: names of all that there are, in the order of the experts' load.
    """

    def __init__(self, config: BackboneConfig, modalities: Sequence[str]) -> None:
        super().__init__()
        self.checkpoint = config.checkpoint
        self.bias_rate = config.moe.bias_rate
        self.modality = nn.ParameterDict({m: nn.Parameter(torch.randn(config.width) * 0.02) for m in modalities})
        self.blocks: Any = nn.ModuleList(Block(config, modalities) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)

    def forward(self, readings: list[Reading], fuse: bool) -> BackboneOutput:
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
        return BackboneOutput([self.normed(reading) for reading in readings], losses, torch.stack(loads))

    def tagged(self, reading: Reading) -> Reading:
        """Every token with the embedding of its modality added."""
        return {m: replace(stream, x=stream.x + self.modality[m]) for m, stream in reading.items()}

    def normed(self, reading: Reading) -> Reading:
        return {m: replace(stream, x=self.norm(stream.x)) for m, stream in reading.items()}

    def rebalance(self, load: Tensor) -> None:
        """Move every layer's routing bias against the step's load (layers, M, E), summed over ranks by the caller."""
        for block, layer_load in zip(self.blocks, load.sum(1), strict=True):
            block.moe.router.rebalance(layer_load, self.bias_rate)
