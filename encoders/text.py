"""Text VQ-VAE: token ids -> trunk -> codes -> token logits."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from encoders.base import Features, Trunk
from encoders.clip_towers import OpenClipTextTrunk
from encoders.trunks import HuggingFaceTextTrunk
from encoders.vqvae import Bottleneck, BottleneckConfig, Encoder
from kernels.attention import attention
from kernels.collectives import gather, rank_and_size, step_group
from kernels.cross_entropy import OutputProjection
from kernels.draws import uniform
from kernels.errors import UserError
from kernels.padding import some_rows
from kernels.ranges import check_ranges

DECODED_TOKENS = 8
"""Token logits decoded per step for each of `bottleneck.reconstruct`: a vocabulary is wide, a sample of it estimates
the same loss."""


@dataclass(frozen=True)
class TextConfig:
    """The text encoder."""

    trunk: str = "scratch"
    """scratch | open_clip/<name>[:tag] | hf/<hub name, folder, or package:NAME/FOLDER>."""
    weights: str | None = None
    """Local file for an open_clip trunk."""
    frozen: bool = False
    """A frozen trunk is not trained and its features are cached on disk."""
    max_tokens: Annotated[int, "[3, inf)"] = 40
    """Captions are cut here, start and end tokens included."""
    width: Annotated[int, "[1, inf)"] = 128
    """Width of the scratch trunk."""
    depth: Annotated[int, "[0, inf)"] = 1
    """Layers of the scratch trunk."""
    heads: Annotated[int, "[1, inf)"] = 4
    """Attention heads of the scratch trunk."""

    def __post_init__(self) -> None:
        check_ranges(self, "text")


class ScratchTextTrunk(Trunk):
    """ids (B, L), mask (B, L) -> (B, L, F): embedding of an observed vocabulary, then bidirectional transformer layers.

    Row 0 of the embedding stands for every token outside the vocabulary.

    Args:
        vocabulary: (V,) int64, sorted, the token ids of the training captions. A buffer, stored with the weights.
        width: F, of a token.
        depth: number of layers.
        heads: attention heads of each.
        max_tokens: the largest L.
    """

    vocabulary: Tensor

    def __init__(self, vocabulary: Tensor, width: int, depth: int, heads: int, max_tokens: int) -> None:
        super().__init__()
        self.width = width
        self.tokens = max_tokens
        self.register_buffer("vocabulary", vocabulary.clone())
        self.vocabulary_size = len(vocabulary) + 1
        self.token = nn.Embedding(self.vocabulary_size, width)
        self.position = nn.Parameter(torch.randn(max_tokens, width) * 0.02)
        nn.init.normal_(self.token.weight, std=0.02)
        self.layers = nn.ModuleList(TransformerLayer(width, heads) for _ in range(depth))

    def compact(self, ids: Tensor) -> Tensor:
        """Tokenizer ids (B, L) -> rows of the embedding (B, L), 0 where the token was never observed."""
        last = len(self.vocabulary) - 1
        if torch.compiler.is_exporting():
            # Engines have no search: the place of an id is how many are smaller.
            row = (self.vocabulary < ids[..., None]).sum(-1).clamp(max=last)
        else:
            row = torch.searchsorted(self.vocabulary, ids.contiguous()).clamp(max=last)
        return torch.where(self.vocabulary[row] == ids, row + 1, 0)

    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        """Token ids (B, L) int64, mask (B, L) bool -> Features (B, L, F)."""
        rows = self.compact(ids)
        x = self.token(rows) + self.position[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        return Features(x, mask)

    def embedding(self) -> Tensor:
        """The matrix (V + 1, F) that the decoder's output is tied to."""
        return self.token.weight


class TransformerLayer(nn.Module):
    """x (B, L, F), mask (B, L) -> (B, L, F): pre-norm self-attention and MLP (Vaswani et al. 2017).

    Args:
        width: F, of a token.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, F), mask (B, L) bool, True where a token is real -> (B, L, F)."""
        qkv = self.project(self.attention_norm(x))
        # (B, L, 3·F) -> three of (B, heads, L, F / heads)
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = attention(q, k, v, mask)
        y = y.transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return x + self.mlp(self.mlp_norm(x))

    def project(self, x: Tensor) -> Tensor:
        """(B, L, F) -> queries, keys and values (B, L, 3·F)."""
        if type(self.qkv) is nn.Linear:
            return nn.functional.linear(x, self.qkv.weight, self.bias())
        # What stands in the place of a linear layer, as an adapter does, has a forward of its own.
        return self.qkv(x)

    def bias(self) -> Tensor:
        """The bias (3·F) of queries, keys and values, zero for keys.

        A softmax does not see what is the same for all keys: its gradient would be rounding alone, which AdamW makes
        steps of full size.
        """
        q, k, v = self.qkv.bias.chunk(3)
        return torch.cat([q, 0 * k, v])


TextTrunk = ScratchTextTrunk | OpenClipTextTrunk | HuggingFaceTextTrunk


class TextEncoder(Encoder):
    """ids (B, L) int64, mask (B, L) bool -> EncoderOutput with tokens (B, L, D).

    Args:
        config: trunk and lengths.
        bottleneck: quantizer and bypass.
        width: D, the backbone's width.
        vocabulary: (V,) token ids of the training captions, for a scratch trunk only.

    Raises:
        ValueError: the trunk reads fewer tokens than config.max_tokens, or a scratch trunk gets no vocabulary.
    """

    trunk: TextTrunk
    reads_vocabulary = True

    def __init__(
        self, config: TextConfig, bottleneck: BottleneckConfig, width: int, vocabulary: Tensor | None = None
    ) -> None:
        super().__init__()
        self.frozen_trunk = config.frozen
        self.max_tokens = config.max_tokens
        self.decoded_tokens = DECODED_TOKENS * bottleneck.reconstruct
        self.trunk = build_text_trunk(config, vocabulary)
        if config.max_tokens > self.trunk.tokens:
            raise UserError(
                f"text.max_tokens={config.max_tokens}, but {config.trunk} reads at most {self.trunk.tokens}"
            )
        self.bottleneck = Bottleneck(bottleneck, self.trunk.width, width, config.max_tokens)
        self.decoder: nn.Module | None = None
        if bottleneck.mode != "continuous":
            embedding_width = self.trunk.embedding().shape[1]
            self.decoder = nn.Sequential(
                nn.Linear(bottleneck.quantizer.width, embedding_width),
                nn.GELU(),
                nn.Linear(embedding_width, embedding_width),
            )
        self.output = OutputProjection()
        """Of the decoder and of whoever writes; another one where processes divide it."""
        self.freeze_trunk_if_asked()

    def features(self, inputs: Tensor, mask: Tensor | None = None) -> Features:
        """Token ids (B, L) int64, mask (B, L) bool -> Features (B, L, F)."""
        if mask is None:
            mask = torch.ones_like(inputs, dtype=torch.bool)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_trunk):
            return self.trunk(inputs, mask)

    def decoded(self, mask: Tensor | None, draws: torch.Generator | None) -> Tensor | None:
        """Draw `decoded_tokens` of the real tokens of all ranks in training; all are decoded in evaluation.

        Args:
            mask: (B, L) bool, True where a token is real; B and L are the same on every rank.
            draws: in the same state on every rank; None draws from torch's own of the CPU.

        Returns:
            (B, L) bool.
        """
        if mask is None or not self.training:
            return mask
        group = step_group()
        rank, _ = rank_and_size(group)
        real = gather(mask, group)
        # One number for each position of the global batch: the smallest ones at real tokens are drawn.
        chance = uniform(real.shape, draws, real.device)
        smallest = chance.masked_fill(~real, 2.0).flatten().topk(min(self.decoded_tokens, real.numel()), largest=False)
        chosen = real & (chance <= smallest.values[-1])
        return chosen[rank * len(mask) : (rank + 1) * len(mask)]

    def reconstruction(self, vectors: Tensor, features: Features, target: Tensor, mask: Tensor | None) -> Tensor:
        """The cross-entropy of decoded tokens at real positions, in training at those that `decoded` draws.

        Args:
            vectors: code vectors (B, L, C).
            features: of the trunk, for their mask.
            target: token ids (B, L) int64.
            mask: (B, L) bool, True where a token is decoded.

        Returns:
            ().
        """
        real = features.mask if mask is None else mask
        most = self.decoded_tokens if self.training else real.numel()
        chosen, counts = some_rows(real, most)
        assert self.decoder is not None
        hidden = self.decoder(vectors.flatten(0, 1)[chosen])
        labels = self.rows(target).flatten()[chosen]
        return self.output.cross_entropy(hidden, self.trunk.embedding(), labels, counts)

    def embed(self, rows: Tensor) -> Tensor:
        """Rows (...) of the trunk's embedding -> what stands there (..., F)."""
        if isinstance(self.trunk, ScratchTextTrunk):
            return self.trunk.token(rows)
        return nn.functional.embedding(rows, self.trunk.embedding())

    def rows(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) -> rows (B, L) of the trunk's embedding."""
        if isinstance(self.trunk, ScratchTextTrunk):
            return self.trunk.compact(ids)
        return ids

    @property
    def unknown_row(self) -> int | None:
        """The row of the embedding that stands for every token outside of it; None where each token has its own."""
        return 0 if isinstance(self.trunk, ScratchTextTrunk) else None

    def ids_of(self, rows: Tensor) -> Tensor:
        """Rows (...) of the trunk's embedding -> the tokenizer's ids (...)."""
        if isinstance(self.trunk, ScratchTextTrunk):
            return self.trunk.vocabulary[(rows - 1).clamp(min=0)]
        return rows

    def reconstruct(self, codes: Tensor) -> Tensor:
        """codes (B, L, Q) -> token logits (B, L, V); V counts the trunk's vocabulary (`token_ids` maps back)."""
        if self.decoder is None:
            raise ValueError("a continuous bottleneck has no decoder: bottleneck.mode=both or vq has one")
        vectors = self.bottleneck.lookup(codes)
        return self.output.logits(self.decoder(vectors), self.trunk.embedding())

    def token_ids(self, logits: Tensor) -> Tensor:
        """Token logits (..., V) -> the tokenizer's ids (...) of the likeliest tokens."""
        return self.ids_of(logits.argmax(-1))


def build_text_trunk(config: TextConfig, vocabulary: Tensor | None) -> TextTrunk:
    """Build the trunk that the settings name.

    Args:
        config: names the trunk, its weights, and the widths of one from scratch.
        vocabulary: (V,) token ids of the training captions, for a scratch trunk only.

    Raises:
        ValueError: there is no such trunk, or a scratch one gets no vocabulary.
    """
    library, _, name = config.trunk.partition("/")
    if library == "hf":
        return HuggingFaceTextTrunk(name, config.weights)
    if library == "open_clip":
        return OpenClipTextTrunk(name, config.weights)
    if config.trunk == "scratch":
        if vocabulary is None:
            raise UserError(
                "a scratch text trunk needs the vocabulary (V,) of its training captions: see observed_vocabulary"
            )
        return ScratchTextTrunk(vocabulary, config.width, config.depth, config.heads, config.max_tokens)
    raise UserError(f"text.trunk={config.trunk!r}: use scratch, open_clip/<name> or hf/<name or folder>")
