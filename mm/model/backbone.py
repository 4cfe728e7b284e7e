"""The backbone: self-attention → cross-modal attention → mixture of experts, one weight set for all modalities."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mm.model.attention import Attention
from mm.model.moe import MoE, MoEConfig

MODALITIES: tuple[str, ...] = ("image", "audio", "text")


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
    """One modality inside the backbone: x (B, T, D), mask (B, T) bool, True where real; marked (B, T) bool, the tokens
    to which attention is drawn, or None."""

    x: Tensor
    mask: Tensor
    term_mask: Tensor | None = None


@dataclass
class BackboneOutput:
    """streams by modality; losses by name, summed over layers;
    load (layers, M, E) assignments per expert and modality."""

    streams: dict[str, Stream]
    losses: dict[str, Tensor]
    load: Tensor


class Block(nn.Module):
    """Pre-norm block. Streams in, streams out; without `fuse`, or with one modality,
    there is no cross-modal attention."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        width = config.width
        self.self_norm, self.self_attention = nn.RMSNorm(width), Attention(width, config.heads)
        self.cross_norm, self.cross_attention = nn.RMSNorm(width), Attention(width, config.heads)
        # From scratch, its output would be noise in the middle of a backbone that already embeds. It starts at zero.
        nn.init.zeros_(self.cross_attention.out_proj.weight)
        nn.init.zeros_(self.cross_attention.out_proj.bias)
        self.moe_norm, self.moe = nn.RMSNorm(width), MoE(config.moe, width, len(MODALITIES))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, readings: list[dict[str, Stream]], fuse: bool
    ) -> tuple[list[dict[str, Stream]], dict[str, Tensor], Tensor]:
        """Readings that do not see each other -> (the same, MoE losses, load (M, E))."""
        return self.mix_experts([self.attend(streams, fuse) for streams in readings])

    def attend(self, streams: dict[str, Stream], fuse: bool) -> dict[str, Stream]:
        streams = {m: self.attend_self(s) for m, s in streams.items()}
        if not fuse or len(streams) < 2:
            return streams
        # Both sides look at the other as it was before either looked: the result does not depend on an order of
        # modalities.
        return {m: self.attend_others(s, [o for n, o in streams.items() if n != m]) for m, s in streams.items()}

    def attend_self(self, s: Stream) -> Stream:
        x = self.self_norm(s.x)
        return replace(s, x=s.x + self.dropout(self.self_attention(x, x, s.mask, s.term_mask)))

    def attend_others(self, s: Stream, others: list[Stream]) -> Stream:
        context = torch.cat([self.cross_norm(o.x) for o in others], 1)
        mask = torch.cat([o.mask for o in others], 1)
        term_mask = None
        if any(o.term_mask is not None for o in others):
            term_mask = torch.cat([torch.zeros_like(o.mask) if o.term_mask is None else o.term_mask for o in others], 1)
        return replace(s, x=s.x + self.dropout(self.cross_attention(self.cross_norm(s.x), context, mask, term_mask)))

    def mix_experts(
        self, readings: list[dict[str, Stream]]
    ) -> tuple[list[dict[str, Stream]], dict[str, Tensor], Tensor]:
        """All real tokens of all streams of all readings pass the experts in one call; padding never reaches them."""
        streams = [(m, s) for reading in readings for m, s in reading.items()]
        real = [s.mask.flatten().nonzero().squeeze(1) for _, s in streams]
        flat = [s.x.flatten(0, 1) for _, s in streams]
        tokens = torch.cat([x[rows] for x, rows in zip(flat, real, strict=True)])
        modality = torch.cat([torch.full_like(r, MODALITIES.index(m)) for (m, _), r in zip(streams, real, strict=True)])
        out = self.moe(self.moe_norm(tokens), modality)
        parts = iter(zip(flat, real, self.dropout(out.x).split([len(rows) for rows in real]), strict=True))
        mixed = [{m: add_experts(s, *next(parts)) for m, s in reading.items()} for reading in readings]
        return mixed, out.losses, out.load


def add_experts(s: Stream, flat: Tensor, rows: Tensor, part: Tensor) -> Stream:
    """A stream, what the experts made of its real tokens (N, D) added at their rows (N,) of `flat` (B·T, D)."""
    return replace(s, x=flat.index_add(0, rows, part.to(flat.dtype)).view_as(s.x))


class Backbone(nn.Module):
    """Streams by modality (B, T, D) -> BackboneOutput.

    `fuse` turns cross-modal attention on: one reading embeds, the other matches.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.checkpoint, self.bias_rate = config.checkpoint, config.moe.bias_rate
        self.modality = nn.ParameterDict({m: nn.Parameter(torch.randn(config.width) * 0.02) for m in MODALITIES})
        self.blocks: Any = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)

    def forward(self, streams: dict[str, Stream], fuse: bool) -> BackboneOutput:
        (streams,), losses, load = self.together([streams], fuse)
        return BackboneOutput(streams, losses, load)

    def together(
        self, readings: list[dict[str, Stream]], fuse: bool
    ) -> tuple[list[dict[str, Stream]], dict[str, Tensor], Tensor]:
        """Several readings, which do not see each other, through the experts in one call each layer: their streams;
        losses and load of all, as in BackboneOutput.
        """
        readings = [{m: replace(s, x=s.x + self.modality[m]) for m, s in streams.items()} for streams in readings]
        losses: dict[str, Tensor] = {}
        loads = []
        for block in self.blocks:
            if self.checkpoint and torch.is_grad_enabled():
                readings, block_losses, load = checkpoint(block, readings, fuse, use_reentrant=False)
            else:
                readings, block_losses, load = block(readings, fuse)
            loads.append(load)
            for name, value in block_losses.items():
                losses[name] = losses[name] + value if name in losses else value
        read = [{m: replace(s, x=self.norm(s.x)) for m, s in streams.items()} for streams in readings]
        return read, losses, torch.stack(loads)

    def rebalance(self, load: Tensor) -> None:
        """Move every layer's routing bias against the step's load (layers, M, E), summed over ranks by the caller."""
        for block, layer_load in zip(self.blocks, load.sum(1), strict=True):
            block.moe.router.rebalance(layer_load, self.bias_rate)
