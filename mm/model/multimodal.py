"""Two readings of one backbone: `forward` embeds each modality alone, `match` reads two through cross attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils._pytree import register_dataclass

from alignment import Moment, fork
from encoders import Encoder, EncoderOutput, Features
from kernels.errors import UserError
from kernels.ranges import check_ranges
from mm.batch import Batch
from mm.modalities import MODALITIES
from mm.model.backbone import Backbone, BackboneConfig
from mm.model.causal import CausalText
from mm.model.encoding import encode, streams_of
from mm.model.heads import AttentionPool, MatchHead, Projection, direct_projections, token_projections
from mm.model.held import held, parameters_of
from mm.model.packed import Reading, Stream
from mm.model.shown import forked, rows_with_codes, some_tokens
from mm.model.term_bias import Terms

WHOLE = Moment()
"""A step in which nothing is left out and nothing kept apart."""


@dataclass(frozen=True)
class ModelConfig:
    """Modalities, backbone, and the heads on it."""

    modalities: tuple[str, ...] = tuple(MODALITIES)
    """Which encoders are built."""
    embedding: Annotated[int, "[1, inf)"] = 128
    """Width of the retrieval embedding."""
    head: Annotated[int, "[0, inf)"] = 0
    """Hidden width of what is added to the linear projection onto the embedding; 0 for the linear projection alone."""
    head_dropout: Annotated[float, "[0, 1)"] = 0.0
    """Before and inside of it."""
    direct: bool = True
    """Project each encoder's summary (of its trunk's features; of its codes, if there is no more) straight onto the
    embedding; what the backbone read is added to it, from zero."""
    token_embedding: Annotated[int, "[1, inf)"] = 64
    """Width of the token embeddings of late interaction."""
    token_head: Annotated[int, "[0, inf)"] = 0
    """Hidden width of what projects the trunks' own tokens onto them, with the dropout of `head`; what the backbone
    read is added, from zero. 0 for the backbone's tokens alone, projected linearly."""
    generate: bool = False
    """Learn to write text as well: captions of images and of sounds, token by token."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "model")
        unknown = set(self.modalities) - MODALITIES.keys()
        if unknown or not self.modalities:
            raise UserError(f"model.modalities={list(self.modalities)}: choose from {', '.join(MODALITIES)}")
        if self.generate and "text" not in self.modalities:
            raise UserError("model.generate=true writes text: it needs text among model.modalities")
        if self.generate and not self.backbone.layers:
            raise UserError("model.generate=true writes by the shared blocks: it needs model.backbone.layers > 0")


@dataclass
class ModelOutput:
    """What one forward returns of a batch of N rows a modality, everything but losses and load by modality.

    Args:
        encoded: each encoder's output, tokens (N, T, D).
        embeddings: unit vectors (N, E) for retrieval.
        tokens: unit vectors (N, T, P) for late interaction.
        masks: (N, T) bool, True where a token is real.
        losses: the router's, weighted, by name.
        load: assignments (layers, M, E) per modality and expert.
        seen: of every layer the streams (N, T, D) as others see them, where the model writes text; else empty.
    """

    encoded: dict[str, EncoderOutput]
    embeddings: dict[str, Tensor]
    tokens: dict[str, Tensor]
    masks: dict[str, Tensor]
    losses: dict[str, Tensor]
    load: Tensor
    seen: list[Reading] = field(default_factory=list)


@dataclass
class MatchInput:
    """N samples of one modality beside N of another, to be read together.

    Args:
        a: name of the left modality.
        b: name of the right modality.
        left: EncoderOutput (N, T_a, D) of a.
        right: EncoderOutput (N, T_b, D) of b, its rows in the order of the left ones.
    """

    a: str
    b: str
    left: EncoderOutput
    right: EncoderOutput


@dataclass
class MatchOutput:
    """What the joint reading returns.

    Args:
        logits: log-odds (N,) for each MatchInput that its rows are pairs.
        losses: the router's, weighted, by name.
        load: assignments (layers, M, E) per modality and expert.
    """

    logits: list[Tensor]
    losses: dict[str, Tensor]
    load: Tensor


for result in (ModelOutput, MatchInput, MatchOutput):
    register_dataclass(result)


class MultimodalModel(nn.Module):
    """Encoders → backbone → heads.

    Args:
        config: backbone and heads.
        encoders: by modality, all as wide as the backbone.
        vocabulary: (V,) int64, the rows of a text trunk's table that are written, where not all of them are.
    """

    def __init__(self, config: ModelConfig, encoders: Mapping[str, Encoder], vocabulary: Tensor | None = None) -> None:
        super().__init__()
        width = config.backbone.width
        self.encoders: Any = nn.ModuleDict(encoders)
        self.backbone = Backbone(config.backbone, tuple(MODALITIES))
        self.pool = nn.ModuleDict({m: AttentionPool(width) for m in encoders})
        # Embedding width, hidden width and dropout of every projection.
        head = (config.embedding, config.head, config.head_dropout)
        project = {m: Projection(width, *head) for m in encoders}
        self.direct: Any = nn.ModuleDict()
        if config.direct:
            self.direct.update(direct_projections(encoders, head))
            for projection in project.values():
                projection.zero_initialise()
        self.project: Any = nn.ModuleDict(project)
        token_head = (config.token_embedding, config.token_head, config.head_dropout)
        project_tokens, direct_tokens = token_projections(encoders, width, token_head)
        self.project_tokens = nn.ModuleDict(project_tokens)
        self.direct_tokens: Any = nn.ModuleDict(direct_tokens)
        self.match_head = MatchHead(config.embedding, width)
        self.terms: Terms | None = None
        self.causal: CausalText | None = None
        if config.generate:
            text: Any = encoders["text"]
            self.causal = CausalText(text.trunk.embedding().shape[1], width, text.max_tokens, vocabulary)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the model has an encoder of."""
        return tuple(self.encoders)

    def forward(
        self,
        batch: Batch,
        reconstruct: bool = True,
        draws: torch.Generator | None = None,
        moment: Moment = WHOLE,
        code_share: Tensor | None = None,
    ) -> ModelOutput:
        """Embed every modality of a batch alone: they share the call and the experts, and do not see each other.

        Args:
            batch: raw inputs or cached features of some modalities; those without an encoder are skipped. What a
                row holds that is not present changes nothing but its own embedding.
            reconstruct: whether the encoders' losses include decoding the raw inputs.
            draws: on the CPU, decides what the encoders decode and the backbone reads; None draws from torch's own.
            moment: how much of the tokens the backbone reads, and what their gradients from the fine-grained and
                matching terms do.
            code_share: (), share of the rows whose codes it sees, where moment.all_codes is not set.

        Returns:
            ModelOutput: embeddings (N, E), tokens (N, T, P), masks (N, T) by modality; load (layers, M, E).
        """
        carried = [m for m in MODALITIES if m in batch.modalities and m in self.encoders]
        alone: dict[str, EncoderOutput] = {}
        matched: dict[str, EncoderOutput] = {}
        for m in carried:
            share = None if moment.all_codes else code_share
            coded = None if share is None else rows_with_codes(len(batch.present[m]), share, draws)
            encoded = self.encode(batch, m, reconstruct, draws, coded, tokens=moment.tokens > 0)
            encoded = some_tokens(encoded, moment.tokens, draws, self.encoders[m].bottleneck.prefix)
            alone[m], matched[m] = forked(encoded, moment.merge)
        if moment.tokens == 0:
            return self.projected_alone(alone, batch)
        out = self.backbone([streams_of(alone)], fuse=False, keep=self.causal is not None)
        (streams,) = out.readings
        embeddings = {}
        tokens = {}
        for m, stream in streams.items():
            whole, fine = fork(stream.x, moment.merge)
            embeddings[m] = self.read(m, replace(stream, x=whole), alone[m].summary, present=batch.present[m])
            tokens[m] = self.token_vectors(m, replace(stream, x=fine), alone[m].features)
        masks = {m: stream.mask for m, stream in streams.items()}
        return ModelOutput(matched, embeddings, tokens, masks, out.losses, out.load, out.seen)

    def projected_alone(self, encoded: dict[str, EncoderOutput], batch: Batch) -> ModelOutput:
        """Embed summaries by their direct projections: `forward` before anything is added to them.

        Args:
            encoded: by modality, with summary (N, S).
            batch: which rows are present.

        Returns:
            ModelOutput without losses and load; of tokens the trunks' own, where these are projected.

        Raises:
            ValueError: the model has no direct projections, or learns to write, which is of tokens.
        """
        if not self.direct or self.causal is not None:
            raise UserError("projections come first where they are all there is: model.direct=true, generate=false")
        projected = {m: self.direct[m](e.summary, present=batch.present[m]) for m, e in encoded.items()}
        embeddings = {m: normalize(x.float(), dim=-1) for m, x in projected.items()}
        tokens = {m: e.tokens for m, e in encoded.items()}
        masks = {m: e.mask for m, e in encoded.items()}
        for m, e in encoded.items():
            if m in self.direct_tokens and e.features is not None:
                tokens[m] = self.token_vectors(m, None, e.features)
                masks[m] = e.features.mask
        return ModelOutput(encoded, embeddings, tokens, masks, {}, self.backbone.no_load(batch.ids.device))

    def encode(
        self,
        batch: Batch,
        modality: str,
        reconstruct: bool = True,
        draws: torch.Generator | None = None,
        coded: Tensor | None = None,
        tokens: bool = True,
    ) -> EncoderOutput:
        """Encode one modality of a batch, and mark the tokens of terms where the model has a term bias.

        Args:
            batch: holds raw inputs or cached features of the modality.
            modality: its name.
            reconstruct: whether the losses include decoding the raw input, if the batch has it.
            draws: decides which of it is decoded.
            coded: (N,) bool, the rows whose tokens show their codes; None for all.
            tokens: whether there are any; without, the trunk's summary is all there is.

        Returns:
            EncoderOutput with tokens (N, T, D).
        """
        encoder = self.encoders[modality]
        encoded = encode(encoder, batch, modality, reconstruct, draws=draws, coded=coded, tokens=tokens)
        if modality == "text" and self.terms is not None and tokens:
            in_term = self.terms(batch.inputs["text"])
            encoded.term_mask = in_term & encoded.mask
        return encoded

    def embed_codes(self, modality: str, codes: Tensor) -> Tensor:
        """Embed what was stored as codes, by a model that was trained on codes alone.

        Args:
            modality: of the codes.
            codes: (N, T, Q) int64, -1 at padding.

        Returns:
            unit vectors (N, E) float32.

        Raises:
            ValueError: the modality's bottleneck has a bypass, or the text's terms are read, which codes do not hold.
        """
        if modality == "text" and self.terms is not None:
            raise UserError("codes of text do not say which tokens are terms: a model with a term bias needs the text")
        encoded = self.encoders[modality].bottleneck.of_codes(codes)
        (streams,) = self.backbone([streams_of({modality: encoded})], fuse=False).readings
        return self.read(modality, streams[modality], encoded.summary)

    def match(self, pairs: Sequence[MatchInput], hold: bool = False) -> MatchOutput:
        """Read pairs of samples jointly, all of them in one call of the experts a layer.

        The joint reading starts as the embedding reading, pool and projection included: cross-modal attention is
        zero-initialised and has only to learn what attending to the other side adds.

        Args:
            pairs: N samples on either side, of one or several pairs of modalities.
            hold: whether the weights that embedding reads too learn nothing from it.

        Returns:
            MatchOutput with logits (N,) for each input, in its order.
        """
        readings = [streams_of({pair.a: pair.left, pair.b: pair.right}) for pair in pairs]
        out = self.backbone(readings, fuse=True, hold=hold)
        sides: dict[str, list[tuple[Stream, Tensor]]] = {}
        for pair, read in zip(pairs, out.readings, strict=True):
            sides.setdefault(pair.a, []).append((read[pair.a], pair.left.summary))
            sides.setdefault(pair.b, []).append((read[pair.b], pair.right.summary))
        heads = [self.pool, self.project, self.direct] if hold else []
        with held(parameters_of(heads)):
            vectors = {m: iter(self.read_together(m, *zip(*parts, strict=True))) for m, parts in sides.items()}
        left = [next(vectors[pair.a]) for pair in pairs]
        right = [next(vectors[pair.b]) for pair in pairs]
        logits = self.match_head(torch.cat(left), torch.cat(right))
        return MatchOutput(list(logits.split([len(x) for x in left])), out.losses, out.load)

    def read_together(
        self, modality: str, streams: Sequence[Stream], summaries: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """`read` of several streams (N_i, T, D) of a modality by the running statistics -> unit vectors (N_i, E) of
        each."""
        pooled = [self.pool[modality](stream.x, stream.mask) for stream in streams]
        x = self.project_pooled(modality, torch.cat(pooled), torch.cat(list(summaries)), use_running_stats=True)
        return x.split([len(part) for part in pooled])

    def read(self, modality: str, stream: Stream, summary: Tensor, present: Tensor | None = None) -> Tensor:
        """Pool and project one modality's tokens.

        Args:
            modality: selects pool and projections.
            stream: the backbone's tokens (N, T, D) and mask (N, T).
            summary: the trunk's summary (N, S), read where the model has direct projections.
            present: (N,) bool, the rows that count in the batch's statistics; None for all.

        Returns:
            unit vectors (N, E) float32.
        """
        pooled = self.pool[modality](stream.x, stream.mask)
        return self.project_pooled(modality, pooled, summary, present=present)

    def project_pooled(
        self,
        modality: str,
        pooled: Tensor,
        summary: Tensor,
        use_running_stats: bool = False,
        present: Tensor | None = None,
    ) -> Tensor:
        """Project pooled vectors.

        Args:
            modality: selects the projections.
            pooled: (N, D).
            summary: the trunk's (N, S).
            use_running_stats: centre by running statistics, see `Projection.forward`.
            present: (N,) bool, the rows that count in the batch's statistics; None for all.

        Returns:
            unit vectors (N, E) float32.
        """
        x = self.project[modality](pooled, use_running_stats, present)
        if modality in self.direct:
            x = x + self.direct[modality](summary, use_running_stats, present)
        return normalize(x.float(), dim=-1)

    def token_vectors(self, modality: str, stream: Stream | None, features: Features | None) -> Tensor:
        """Project tokens for late interaction.

        Args:
            modality: selects the projections.
            stream: the backbone's tokens (N, T, D); None before anything is added to the trunk's.
            features: the trunk's (N, T, F), read where the model projects these.

        Returns:
            unit vectors (N, T, P) float32.
        """
        parts = []
        if stream is not None:
            parts.append(self.project_tokens[modality](stream.x))
        if modality in self.direct_tokens:
            assert features is not None  # of an encoder's own output
            parts.append(self.direct_tokens[modality](features.tokens))
        return normalize(sum(parts).float(), dim=-1)

    def add_term_bias(self, sequences: Tensor) -> None:
        """Give every attention head a learned bias towards the tokens of terms.

        Args:
            sequences: token ids (N, L) int64 of the terms, as `term_bias.Terms` takes them.

        Raises:
            ValueError: the model has no text encoder.
        """
        if "text" not in self.encoders:
            raise UserError(f"terms are of text, which this model does not read: it has {', '.join(self.modalities)}")
        self.terms = Terms(sequences)
        for block in self.backbone.blocks:
            block.self_attention.add_term_bias()
            block.cross_attention.add_term_bias()
