"""Text VQ-VAE: token ids -> trunk -> codes -> token logits.

The tokenizer is the trunk's own: open_clip's BPE, or transformers'.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from encoders.base import Features, Trunk
from encoders.trunks import HuggingFaceTextTrunk, OpenClipTextTrunk, fetching, hugging_face_folder, require_transformers
from encoders.vqvae import Bottleneck, BottleneckConfig, Encoder
from kernels.attention import attention

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
    max_tokens: int = 40
    """Captions are cut here, start and end tokens included."""
    width: int = 128
    """Width of the scratch trunk."""
    depth: int = 1
    """Layers of the scratch trunk."""
    heads: int = 4
    """Attention heads of the scratch trunk."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"text.max_tokens={self.max_tokens}: it must be at least 1")


class Tokenizer:
    """list of B captions -> ids (B, L) int64, mask (B, L) bool;
    L is the longest caption of the batch, at most `max_tokens`."""

    def __init__(self, trunk: str, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        library, _, name = trunk.partition("/")
        self.hugging_face: Any = None
        self.bpe: Any = None
        if library == "hf":
            with fetching(trunk):
                self.hugging_face = require_transformers(name).AutoTokenizer.from_pretrained(hugging_face_folder(name))
        elif library in ("scratch", "open_clip"):
            import open_clip

            self.bpe = open_clip.SimpleTokenizer(context_length=max_tokens)
        else:
            raise ValueError(f"text.trunk={trunk!r}: use scratch, open_clip/<name> or hf/<name or folder>")

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        if self.hugging_face is not None:
            encoded = self.hugging_face(
                captions, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
            return encoded["input_ids"], encoded["attention_mask"].bool()
        ids = self.bpe(captions)
        # open_clip pads with 0, which is also the token "!"; the end token, the highest id, tells where a caption
        # stops.
        end = ids.argmax(1)
        mask = torch.arange(ids.shape[1]) <= end[:, None]
        longest = int(end.max()) + 1
        return ids[:, :longest], mask[:, :longest]

    def word_ids(self, text: str, after: str = "") -> list[int]:
        """Token ids of a text without start and end token, nor those of what it begins with, `after`.

        Raises ValueError where the text does not begin with the tokens of `after`.
        """
        if self.hugging_face is not None:
            ids, first = (self.hugging_face(t, add_special_tokens=False)["input_ids"] for t in (text, after))
        else:
            ids, first = (self.bpe.encode(t) for t in (text, after))
        if ids[: len(first)] != first:
            raise ValueError(f"the tokens of {text!r} do not begin with those of {after!r}")
        return ids[len(first) :]

    @property
    def unknown(self) -> int | None:
        """The id that stands for whatever the tokenizer does not know, if it has one."""
        return None if self.hugging_face is None else self.hugging_face.unk_token_id

    def decode(self, ids: list[int]) -> str:
        """Token ids of one caption -> text, special tokens skipped."""
        if self.hugging_face is not None:
            return self.hugging_face.decode(ids, skip_special_tokens=True)
        special = (self.bpe.sot_token_id, self.bpe.eot_token_id)
        return self.bpe.decode([i for i in ids if i not in special]).strip()


def observed_vocabulary(tokenizer: Tokenizer, captions: Iterable[str]) -> Tensor:
    """The token ids that occur in `captions`, sorted: (V,) int64.

    A scratch embedding of these alone is a tenth of BPE's 49,408.
    """
    seen: set[int] = set()
    chunk: list[str] = []
    for caption in captions:
        chunk.append(caption)
        if len(chunk) == 1024:
            seen.update(tokenizer(chunk)[0].unique().tolist())
            chunk.clear()
    if chunk:
        seen.update(tokenizer(chunk)[0].unique().tolist())
    return torch.tensor(sorted(seen))


class ScratchTextTrunk(Trunk):
    """ids (B, L), mask (B, L) -> (B, L, F): embedding of an observed vocabulary, then bidirectional transformer layers.

    Row 0 stands for every token outside the vocabulary. `vocabulary` (V,) is a buffer: it travels with the weights.
    """

    vocabulary: Tensor

    def __init__(self, vocabulary: Tensor, width: int, depth: int, heads: int, max_tokens: int) -> None:
        super().__init__()
        self.width, self.tokens = width, max_tokens
        self.register_buffer("vocabulary", vocabulary.clone())
        self.vocabulary_size = len(vocabulary) + 1
        self.token = nn.Embedding(self.vocabulary_size, width)
        self.position = nn.Parameter(torch.randn(max_tokens, width) * 0.02)
        nn.init.normal_(self.token.weight, std=0.02)
        self.layers = nn.ModuleList(TransformerLayer(width, heads) for _ in range(depth))

    def compact(self, ids: Tensor) -> Tensor:
        """Tokenizer ids (B, L) -> rows of the embedding (B, L), 0 where the token was never observed."""
        row = torch.searchsorted(self.vocabulary, ids.contiguous()).clamp(max=len(self.vocabulary) - 1)
        return torch.where(self.vocabulary[row] == ids, row + 1, 0)

    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        x = self.token(self.compact(ids)) + self.position[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        return Features(x, mask)

    def embedding(self) -> Tensor:
        return self.token.weight


class TransformerLayer(nn.Module):
    """x (B, L, F), mask (B, L) -> (B, L, F): pre-norm self-attention and MLP (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


TextTrunk = ScratchTextTrunk | OpenClipTextTrunk | HuggingFaceTextTrunk


class TextEncoder(Encoder):
    """ids (B, L) int64, mask (B, L) bool -> EncoderOutput with tokens (B, L, D).

    `vocabulary` (V,) is needed from scratch only.
    """

    trunk: TextTrunk
    reads_vocabulary = True

    def __init__(
        self, config: TextConfig, bottleneck: BottleneckConfig, width: int, vocabulary: Tensor | None = None
    ) -> None:
        super().__init__()
        self.frozen_trunk = config.frozen
        self.decoded_tokens = DECODED_TOKENS * bottleneck.reconstruct
        self.trunk = build_text_trunk(config, vocabulary)
        if config.max_tokens > self.trunk.tokens:
            raise ValueError(
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
        self.freeze_trunk_if_asked()

    def features(self, inputs: Tensor, mask: Tensor | None = None) -> Features:
        mask = torch.ones_like(inputs, dtype=torch.bool) if mask is None else mask
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_trunk):
            return self.trunk(inputs, mask)

    def reconstruction(
        self, vectors: Tensor, features: Features, target: Tensor | None, mask: Tensor | None
    ) -> Tensor | None:
        """The cross-entropy of the decoded tokens at real positions, against token ids `target` (B, L)."""
        if target is None:
            return None
        real = features.mask if mask is None else mask
        chosen = real.flatten().nonzero().squeeze(1)
        if self.training and len(chosen) > self.decoded_tokens:
            chosen = chosen[torch.randperm(len(chosen), device=chosen.device)[: self.decoded_tokens]]
        logits = self.logits(vectors.flatten(0, 1)[chosen])
        return nn.functional.cross_entropy(logits.float(), self.rows(target).flatten()[chosen])

    def logits(self, vectors: Tensor) -> Tensor:
        """Code vectors (..., C) -> token logits (..., V), the output matrix tied to the trunk's embedding
        (Press & Wolf 2017)."""
        hidden = self.decoder(vectors)  # type: ignore[misc]
        return nn.functional.linear(hidden, self.trunk.embedding())

    def rows(self, ids: Tensor) -> Tensor:
        return self.trunk.compact(ids) if isinstance(self.trunk, ScratchTextTrunk) else ids

    def reconstruct(self, codes: Tensor) -> Tensor:
        """codes (B, L, Q) -> token logits (B, L, V); V counts the trunk's vocabulary (`token_ids` maps back)."""
        if self.decoder is None:
            raise ValueError("a continuous bottleneck has no decoder: bottleneck.mode=both or vq has one")
        return self.logits(self.bottleneck.lookup(codes))

    def token_ids(self, logits: Tensor) -> Tensor:
        """Token logits (..., V) -> the tokenizer's ids (...) of the likeliest tokens."""
        best = logits.argmax(-1)
        if isinstance(self.trunk, ScratchTextTrunk):
            return self.trunk.vocabulary[(best - 1).clamp(min=0)]
        return best


def build_text_trunk(config: TextConfig, vocabulary: Tensor | None) -> TextTrunk:
    library, _, name = config.trunk.partition("/")
    if library == "hf":
        return HuggingFaceTextTrunk(name, config.weights)
    if library == "open_clip":
        return OpenClipTextTrunk(name, config.weights)
    if config.trunk == "scratch":
        if vocabulary is None:
            raise ValueError(
                "a scratch text trunk needs the vocabulary (V,) of its training captions: see observed_vocabulary"
            )
        return ScratchTextTrunk(vocabulary, config.width, config.depth, config.heads, config.max_tokens)
    raise ValueError(f"text.trunk={config.trunk!r}: use scratch, open_clip/<name> or hf/<name or folder>")
