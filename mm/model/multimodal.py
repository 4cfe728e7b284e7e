"""Two readings of one backbone: `forward` embeds each modality alone, `match` reads two through cross attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils._pytree import register_dataclass

from encoders import Encoder, EncoderOutput, Features
from mm.batch import Batch
from mm.modalities import MODALITIES
from mm.model.backbone import Backbone, BackboneConfig, Reading, Stream
from mm.model.heads import AttentionPool, MatchHead, Projection
from mm.model.term_bias import Terms


@dataclass(frozen=True)
class ModelConfig:
    """Modalities, backbone, and the heads on it."""

    modalities: tuple[str, ...] = tuple(MODALITIES)
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
        unknown = set(self.modalities) - MODALITIES.keys()
        if unknown or not self.modalities:
            raise ValueError(f"model.modalities={list(self.modalities)}: choose from {', '.join(MODALITIES)}")


@dataclass
class ModelOutput:
    """What one forward knows of a batch, by modality.

    encoded: EncoderOutput; embeddings (N, E) and tokens (N, T, P) are unit vectors, masks (N, T);
    losses: the router's, by name; load (layers, M, E).
    """

    encoded: dict[str, EncoderOutput]
    embeddings: dict[str, Tensor]
    tokens: dict[str, Tensor]
    masks: dict[str, Tensor]
    losses: dict[str, Tensor]
    load: Tensor


@dataclass
class MatchInput:
    """N samples of modality a beside N of modality b, to be read together."""

    a: str
    b: str
    left: EncoderOutput
    right: EncoderOutput


@dataclass
class MatchOutput:
    """logits (N,) of each input: log-odds that a pair is a pair; losses and load as in ModelOutput."""

    logits: list[Tensor]
    losses: dict[str, Tensor]
    load: Tensor


for result in (ModelOutput, MatchInput, MatchOutput):
    register_dataclass(result)


class MultimodalModel(nn.Module):
    """Encoders → backbone → heads. encoders: by modality, all as wide as the backbone."""

    def __init__(self, config: ModelConfig, encoders: Mapping[str, Encoder]) -> None:
        super().__init__()
        width = config.backbone.width
        self.encoders: Any = nn.ModuleDict(encoders)
        self.backbone = Backbone(config.backbone, tuple(MODALITIES))
        self.pool = nn.ModuleDict({m: AttentionPool(width) for m in encoders})
        head = (config.embedding, config.head, config.head_dropout)
        project = {m: Projection(width, *head) for m in encoders}
        self.direct: Any = nn.ModuleDict()
        if config.direct:
            self.direct.update(direct_projections(encoders, head))
            for projection in project.values():
                projection.zero_initialise()
        self.project: Any = nn.ModuleDict(project)
        self.project_tokens = nn.ModuleDict({m: nn.Linear(width, config.token_embedding) for m in encoders})
        self.match_head = MatchHead(config.embedding, width)
        self.terms: Terms | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.encoders)

    def forward(self, batch: Batch, reconstruct: bool = True) -> ModelOutput:
        """Batch -> ModelOutput: every modality it carries, each embedded alone. The modalities share the call and the
        experts, and do not see each other."""
        carried = [m for m in MODALITIES if m in batch.modalities and m in self.encoders]
        encoded = {m: self.encode(batch, m, reconstruct) for m in carried}
        out = self.backbone([streams_of(encoded)], fuse=False)
        (streams,) = out.readings
        embeddings = {m: self.read(m, stream, encoded[m].summary) for m, stream in streams.items()}
        tokens = {m: self.token_vectors(m, stream) for m, stream in streams.items()}
        masks = {m: stream.mask for m, stream in streams.items()}
        return ModelOutput(encoded, embeddings, tokens, masks, out.losses, out.load)

    def encode(self, batch: Batch, modality: str, reconstruct: bool = True) -> EncoderOutput:
        """One modality of a batch -> EncoderOutput (N, T, D); `reconstruct` adds the decoder's loss where the raw input
        is there."""
        encoded = encode(self.encoders[modality], batch, modality, reconstruct)
        if modality == "text" and self.terms is not None:
            encoded.term_mask = self.terms(batch.inputs["text"]) & encoded.mask
        return encoded

    def match(self, pairs: Sequence[MatchInput]) -> MatchOutput:
        """Pairs of samples, of one or several pairs of modalities -> MatchOutput, the experts called once for all.

        The joint reading starts as the embedding reading, pool and projection included: cross-modal attention, which
        starts at zero, has only to learn what looking at the other side adds.
        """
        readings = [streams_of({pair.a: pair.left, pair.b: pair.right}) for pair in pairs]
        out = self.backbone(readings, fuse=True)
        logits = []
        for pair, read in zip(pairs, out.readings, strict=True):
            x = self.read(pair.a, read[pair.a], pair.left.summary, use_running_stats=True)
            y = self.read(pair.b, read[pair.b], pair.right.summary, use_running_stats=True)
            logits.append(self.match_head(x, y))
        return MatchOutput(logits, out.losses, out.load)

    def read(self, modality: str, stream: Stream, summary: Tensor, use_running_stats: bool = False) -> Tensor:
        """What leaves the backbone (N, T, D), and the trunk's summary (N, S) -> unit vectors (N, E)."""
        pooled = self.pool[modality](stream.x, stream.mask)
        x = self.project[modality](pooled, use_running_stats)
        if modality in self.direct:
            x = x + self.direct[modality](summary, use_running_stats)
        return normalize(x.float(), dim=-1)

    def token_vectors(self, modality: str, stream: Stream) -> Tensor:
        """What leaves the backbone (N, T, D) -> unit vectors of its tokens (N, T, P)."""
        return normalize(self.project_tokens[modality](stream.x).float(), dim=-1)

    def add_term_bias(self, sequences: Tensor) -> None:
        """Every head learns a bias towards the tokens of terms; sequences (N, L) as `term_bias.Terms` has them."""
        if "text" not in self.encoders:
            raise ValueError(f"terms are of text, which this model does not read: it has {', '.join(self.modalities)}")
        self.terms = Terms(sequences)
        for block in self.backbone.blocks:
            block.self_attention.add_term_bias()
            block.cross_attention.add_term_bias()


def encode(
    encoder: Encoder, batch: Batch, modality: str, reconstruct: bool = True, rows: Tensor | None = None
) -> EncoderOutput:
    """One modality of a batch through its encoder; of cached features the trunk does not run. rows (N,) bool: those
    that are read; all by default."""

    def chosen(tensors: Mapping[str, Tensor]) -> Tensor | None:
        tensor = tensors.get(modality)
        return tensor if tensor is None or rows is None else tensor[rows]

    mask = chosen(batch.masks)
    tokens = chosen(batch.features)
    features = None
    if tokens is not None:
        assert mask is not None
        features = Features(tokens.float(), mask)
    return encoder(chosen(batch.inputs), mask, features, reconstruct)


def direct_projections(encoders: Mapping[str, Encoder], head: tuple[int, int, float]) -> dict[str, Projection]:
    """A projection of each trunk's summary; head: embedding width, hidden width and dropout."""
    projections = {}
    for modality, encoder in encoders.items():
        if encoder.bottleneck.bypass is None:
            raise ValueError("model.direct goes around the codes of bottleneck.mode=vq: use mode=both")
        projections[modality] = Projection(encoder.bottleneck.summary_width, *head)
    return projections


def streams_of(encoded: Mapping[str, EncoderOutput]) -> Reading:
    """EncoderOutputs by modality -> streams of the backbone."""
    return {m: Stream(e.tokens, e.mask, e.term_mask) for m, e in encoded.items()}


def select(encoded: EncoderOutput, rows: Tensor) -> EncoderOutput:
    """The rows (N,) of an EncoderOutput; its losses, which belong to the whole batch, stay behind."""
    term_mask = None if encoded.term_mask is None else encoded.term_mask[rows]
    return EncoderOutput(
        encoded.tokens[rows], encoded.codes[rows], encoded.mask[rows], encoded.summary[rows], term_mask=term_mask
    )


def count_parameters(model: MultimodalModel) -> tuple[int, int]:
    """(total, active per token): of the routed experts only K of E count as active."""
    total = sum(parameter.numel() for parameter in model.parameters())
    idle = 0
    for block in model.backbone.blocks:
        moe = block.moe
        routed = moe.w_in.numel() + moe.w_out.numel()
        idle += routed - routed * moe.config.top_k // moe.config.num_experts
    return total, total - idle
