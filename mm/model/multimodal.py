"""Two readings of one backbone: `embed` a modality alone into a unit vector,
`match` two modalities through cross-modal attention."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from encoders import ENCODERS, AudioConfig, EncoderOutput, Features, ImageConfig, TextConfig
from encoders.state import load_encoder
from mm.batch import Batch
from mm.model.backbone import MODALITIES, Backbone, BackboneConfig, Stream
from mm.model.term_bias import Terms


@dataclass(frozen=True)
class ModelConfig:
    """Modalities, backbone, and the heads on it."""

    modalities: tuple[str, ...] = MODALITIES
    """Which encoders are built."""
    embedding: int = 128
    """Width of the retrieval embedding."""
    head: int = 0
    """Hidden width of what is added to the linear projection onto the embedding; 0 for the linear projection alone."""
    head_dropout: float = 0.0
    """Before and inside of it."""
    direct: bool = False
    """Project each trunk's summary straight onto the embedding; what the backbone read is added to it, from zero."""
    token_embedding: int = 64
    """Width of the token embeddings of late interaction."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)

    def __post_init__(self) -> None:
        unknown = set(self.modalities) - set(MODALITIES)
        if unknown or not self.modalities:
            raise ValueError(f"model.modalities={list(self.modalities)}: choose from {', '.join(MODALITIES)}")


@dataclass
class ModelOutput:
    """What one forward knows of a batch, by modality.

    encoded: EncoderOutput; embeddings (B, E) and tokens (B, T, P) are unit vectors, masks (B, T);
    losses: the router's, by name; load (layers, M, E).
    """

    encoded: dict[str, EncoderOutput]
    embeddings: dict[str, Tensor]
    tokens: dict[str, Tensor]
    masks: dict[str, Tensor]
    losses: dict[str, Tensor]
    load: Tensor


@dataclass
class MatchOutput:
    """logits (N,): log-odds that the pair is a pair; losses and load as in ModelOutput."""

    logits: Tensor
    losses: dict[str, Tensor]
    load: Tensor


class AttentionPool(nn.Module):
    """Tokens (B, T, D), mask (B, T) -> (B, D): the mean plus what one learned query attends to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weight = self.score(x).float().masked_fill(~mask[..., None], -1e4).softmax(1).to(x.dtype)
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return (weight * x).sum(1) + mean


class MultimodalModel(nn.Module):
    """Encoders → backbone → heads. `vocabulary` (V,) is the scratch text trunk's,
    see encoders.text.observed_vocabulary."""

    def __init__(
        self,
        config: ModelConfig,
        image: ImageConfig,
        audio: AudioConfig,
        text: TextConfig,
        vocabulary: Tensor | None = None,
    ) -> None:
        super().__init__()
        width = config.backbone.width
        options: dict[str, tuple] = {
            "image": (image, width),
            "audio": (audio, width),
            "text": (text, width, vocabulary),
        }
        encoders = {m: ENCODERS[m](*options[m]) for m in config.modalities}
        for m, encoder in encoders.items():
            if options[m][0].encoder_weights:
                load_encoder(encoder, options[m][0].encoder_weights)
        self.encoders: Any = nn.ModuleDict(encoders)
        self.backbone = Backbone(config.backbone)
        self.pool = nn.ModuleDict({m: AttentionPool(width) for m in config.modalities})
        head = (config.embedding, config.head, config.head_dropout)
        project = {m: Projection(width, *head) for m in config.modalities}
        self.direct: Any = nn.ModuleDict()
        if config.direct:
            for m, e in encoders.items():
                if e.bottleneck.bypass is None:
                    raise ValueError(f"model.direct goes around the codes of {m}.bottleneck.mode=vq: use mode=both")
            self.direct.update({m: Projection(e.bottleneck.summary_width, *head) for m, e in encoders.items()})
            for projection in project.values():
                projection.zero_initialise()
        self.project: Any = nn.ModuleDict(project)
        self.project_tokens = nn.ModuleDict({m: nn.Linear(width, config.token_embedding) for m in config.modalities})
        self.match_head = MatchHead(config.embedding, width)
        self.terms: Terms | None = None

    def add_term_bias(self, terms: Tensor) -> None:
        """Draw attention to the tokens of terms (N, L), see `term_bias.Terms`, by strengths that are learned."""
        if "text" not in self.encoders:
            raise ValueError(f"terms are of text, which this model does not read: it has {', '.join(self.modalities)}")
        self.terms = Terms(terms)
        for block in self.backbone.blocks:
            block.self_attention.add_term_bias()
            block.cross_attention.add_term_bias()

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.encoders)

    def features(self, batch: Batch, modality: str) -> Features:
        """The trunk's output for a batch: cached features where the batch carries them, else the trunk runs."""
        if modality in batch.features:
            return Features(batch.features[modality].float(), batch.masks[modality])
        return self.encoders[modality].features(batch.inputs[modality], batch.masks.get(modality))

    def encode(self, batch: Batch, modality: str, reconstruct: bool = True) -> EncoderOutput:
        """One modality of a batch -> EncoderOutput (B, T, D);
        `reconstruct` adds the decoder's loss where the raw input is there."""
        target = batch.inputs.get(modality) if reconstruct else None
        mask = batch.masks.get(modality)
        encoded: EncoderOutput = self.encoders[modality](self.features(batch, modality), target, mask)
        if modality == "text" and self.terms is not None:
            encoded.term_mask = self.terms(batch.inputs["text"]) & encoded.mask
        return encoded

    def forward(self, batch: Batch, reconstruct: bool = True) -> ModelOutput:
        """Batch -> ModelOutput: every modality it carries, each embedded alone."""
        encoded = {m: self.encode(batch, m, reconstruct) for m in batch.modalities if m in self.encoders}
        return self.embed(encoded)

    def embed(self, encoded: dict[str, EncoderOutput]) -> ModelOutput:
        """EncoderOutputs by modality -> ModelOutput.

        The modalities share the call and the experts, and do not see each other.
        """
        out = self.backbone({m: Stream(e.tokens, e.mask, e.term_mask) for m, e in encoded.items()}, fuse=False)
        embeddings = {m: self.read(m, s, encoded[m].summary) for m, s in out.streams.items()}
        tokens = {
            m: nn.functional.normalize(self.project_tokens[m](s.x).float(), dim=-1) for m, s in out.streams.items()
        }
        return ModelOutput(
            encoded, embeddings, tokens, {m: s.mask for m, s in out.streams.items()}, out.losses, out.load
        )

    def read(self, modality: str, stream: Stream, summary: Tensor, use_running_stats: bool = False) -> Tensor:
        """What leaves the backbone (B, T, D), and the trunk's summary (B, S) -> unit vectors (B, E)."""
        x = self.project[modality](self.pool[modality](stream.x, stream.mask), use_running_stats)
        if modality in self.direct:
            x = x + self.direct[modality](summary, use_running_stats)
        return nn.functional.normalize(x.float(), dim=-1)

    def match(self, a: str, b: str, left: EncoderOutput, right: EncoderOutput) -> MatchOutput:
        """EncoderOutputs of N paired samples of modalities a and b -> MatchOutput with logits (N,).

        The joint reading starts as the embedding reading, pool and projection included: cross-modal attention, which
        starts at zero, has only to learn what looking at the other side adds.
        """
        return self.match_all([(a, b, left, right)])

    def match_all(self, pairs: list[tuple[str, str, EncoderOutput, EncoderOutput]]) -> MatchOutput:
        """`match` of several pairs of modalities, the experts called once for all: logits of all, one after another."""
        readings = [{m: Stream(e.tokens, e.mask, e.term_mask) for m, e in ((a, x), (b, y))} for a, b, x, y in pairs]
        streams, losses, load = self.backbone.together(readings, fuse=True)
        logits = []
        for (a, b, left, right), read in zip(pairs, streams, strict=True):
            x, y = (self.read(m, read[m], e.summary, use_running_stats=True) for m, e in ((a, left), (b, right)))
            logits.append(self.match_head(x, y))
        return MatchOutput(torch.cat(logits), losses, load)


class Projection(nn.Module):
    """Pooled vectors (N, D) -> (N, E): centred, scaled, and projected; a `hidden` width adds a small network.

    Untrained pooled vectors share one large direction and differ in a small remainder. Centred and scaled, the
    remainder is what the contrastive loss sees from the first step on, instead of after a plateau at ln(batch size).
    """

    def __init__(self, width: int, embedding: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.center, self.linear = nn.BatchNorm1d(width, affine=False), nn.Linear(width, embedding)
        self.net: nn.Sequential | None = None
        if hidden:
            drop = nn.Dropout(dropout)
            self.net = nn.Sequential(drop, nn.Linear(width, hidden), nn.GELU(), drop, nn.Linear(hidden, embedding))

    def zero_initialise(self) -> None:
        for layer in (self.linear, *([] if self.net is None else [self.net[-1]])):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, use_running_stats: bool = False) -> Tensor:
        """`use_running_stats` centres by the running statistics, and leaves them: hard pairs must not move them."""
        center = self.center
        if use_running_stats:
            x = nn.functional.batch_norm(x, center.running_mean, center.running_var, eps=center.eps)
        else:
            x = center(x)
        return self.linear(x) if self.net is None else self.linear(x) + self.net(x)


class MatchHead(nn.Module):
    """Unit vectors (N, E) of both sides -> logits (N,): a scaled cosine, and what a small network adds to it.

    It begins undecided at a cosine of a half. Matching comes in when hard negatives lie there and above: were they
    called pairs with confidence, its first steps would undo what the contrastive terms have reached.
    """

    def __init__(self, embedding: int, hidden: int, scale: float = 5.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.bias = nn.Parameter(torch.tensor(-scale / 2))
        self.net = nn.Sequential(nn.Linear(3 * embedding, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        cosine = self.log_scale.exp() * (x * y).sum(-1) + self.bias
        # Entries of about one, whatever the width.
        x, y = (side * side.shape[-1] ** 0.5 for side in (x, y))
        return cosine + self.net(torch.cat([x, y, x * y], -1)).squeeze(-1).float()


def select(encoded: EncoderOutput, rows: Tensor) -> EncoderOutput:
    """The rows (N,) of an EncoderOutput; its losses, which belong to the whole batch, stay behind."""
    term_mask = None if encoded.term_mask is None else encoded.term_mask[rows]
    return EncoderOutput(
        encoded.tokens[rows], encoded.codes[rows], encoded.mask[rows], encoded.summary[rows], term_mask=term_mask
    )


def count_parameters(model: MultimodalModel) -> tuple[int, int]:
    """(total, active per token): of the routed experts only K of E count as active."""
    total = sum(p.numel() for p in model.parameters())
    idle = 0
    for block in model.backbone.blocks:
        routed = block.moe.w_in.numel() + block.moe.w_out.numel()
        idle += routed - routed * block.moe.config.top_k // block.moe.config.num_experts
    return total, total - idle
