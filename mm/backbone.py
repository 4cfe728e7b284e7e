"""The backbone: self-attention → cross-modal attention → mixture of experts, one weight set for all modalities."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mm.attention import Attention
from mm.moe import MoE, MoEConfig

MODALITIES: tuple[str, ...] = ("image", "audio", "text")


@dataclass(frozen=True)
class BackboneConfig:
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
    """One modality inside the backbone: x (B, T, D), mask (B, T) bool, True where real."""

    x: Tensor
    mask: Tensor


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
        # From scratch, its output would be noise in the middle of a backbone that already embeds. It begins at nothing.
        nn.init.zeros_(self.cross_attention.out_proj.weight)
        nn.init.zeros_(self.cross_attention.out_proj.bias)
        self.moe_norm, self.moe = nn.RMSNorm(width), MoE(config.moe, width, len(MODALITIES))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, streams: dict[str, Stream], fuse: bool) -> tuple[dict[str, Stream], dict[str, Tensor], Tensor]:
        """-> (streams, MoE losses, load (M, E))."""
        streams = {m: self.attend_self(s) for m, s in streams.items()}
        if fuse and len(streams) > 1:
            # Both sides look at the other as it was before either looked: the result does not depend on an order of
            # modalities.
            streams = {m: self.attend_others(s, [o for n, o in streams.items() if n != m]) for m, s in streams.items()}
        return self.mix_experts(streams)

    def attend_self(self, s: Stream) -> Stream:
        x = self.self_norm(s.x)
        return Stream(s.x + self.dropout(self.self_attention(x, x, s.mask)), s.mask)

    def attend_others(self, s: Stream, others: list[Stream]) -> Stream:
        context = torch.cat([self.cross_norm(o.x) for o in others], 1)
        mask = torch.cat([o.mask for o in others], 1)
        return Stream(s.x + self.dropout(self.cross_attention(self.cross_norm(s.x), context, mask)), s.mask)

    def mix_experts(self, streams: dict[str, Stream]) -> tuple[dict[str, Stream], dict[str, Tensor], Tensor]:
        """All real tokens of all streams pass the experts in one call; padding never reaches them."""
        real = {m: s.mask.flatten().nonzero().squeeze(1) for m, s in streams.items()}
        flat = {m: s.x.flatten(0, 1) for m, s in streams.items()}
        tokens = torch.cat([flat[m][real[m]] for m in streams])
        modality = torch.cat([torch.full_like(real[m], MODALITIES.index(m)) for m in streams])
        out = self.moe(self.moe_norm(tokens), modality)
        parts = self.dropout(out.x).split([len(real[m]) for m in streams])
        mixed = {
            m: Stream(flat[m].index_add(0, real[m], part.to(flat[m].dtype)).view_as(s.x), s.mask)
            for (m, s), part in zip(streams.items(), parts, strict=True)
        }
        return mixed, out.losses, out.load


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
        streams = {m: Stream(s.x + self.modality[m], s.mask) for m, s in streams.items()}
        losses: dict[str, Tensor] = {}
        loads = []
        for block in self.blocks:
            if self.checkpoint and torch.is_grad_enabled():
                streams, block_losses, load = checkpoint(block, streams, fuse, use_reentrant=False)
            else:
                streams, block_losses, load = block(streams, fuse)
            loads.append(load)
            for name, value in block_losses.items():
                losses[name] = losses[name] + value if name in losses else value
        return BackboneOutput(
            {m: Stream(self.norm(s.x), s.mask) for m, s in streams.items()}, losses, torch.stack(loads)
        )

    def rebalance(self, load: Tensor) -> None:
        """Move every layer's routing bias against the step's load (layers, M, E), summed over ranks by the caller."""
        for block, layer_load in zip(self.blocks, load.sum(1), strict=True):
            block.moe.router.rebalance(layer_load, self.bias_rate)
