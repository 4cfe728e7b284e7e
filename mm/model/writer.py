"""A model as a writer: texts read causally by the shared blocks, beside images or sounds that are read alone.

Letters: B sequences, T new tokens of each, D width, V rows of the text trunk's table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from encoders import EncoderOutput
from kernels.errors import UserError
from mm.batch import Batch
from mm.model.cache import Cache, CacheShape
from mm.model.causal import CausalOutput, CausalText, Condition, Memory, condition_of, read_causally
from mm.model.multimodal import MultimodalModel, streams_of
from mm.model.packed import Reading


class Writer:
    """What a model that was built to write text does with tokens.

    Args:
        model: its weights are read, never copied.

    Raises:
        ValueError: the model does not write text.
    """

    def __init__(self, model: MultimodalModel) -> None:
        if model.causal is None:
            raise UserError("this model does not write text: train it with model.generate=true")
        self.model = model
        self.causal: CausalText = model.causal
        self.encoder: Any = model.encoders["text"]
        self.blocks = list(model.backbone.blocks)
        self.number = model.backbone.modalities.index("text")

    def read(
        self, ids: Tensor, real: Tensor | None, memory: Memory, at: Tensor, condition: Condition | None
    ) -> CausalOutput:
        """Read tokens, each to say which comes next.

        Args:
            ids: (B, T) int64, as the tokenizer gives them.
            real: (B, T) bool, the tokens that count; None for all.
            memory: what was read before, which they are added to.
            at: their positions in the text, (B, T) or (T,) int64.
            condition: what is read beside, of B sequences; None for text alone.

        Returns:
            CausalOutput with tokens x (B, T, D) for `next_logits`; in training the experts' load is counted.
        """
        x = self.causal.embed(self.encoder.embed(self.encoder.rows(ids)), at) + self.model.backbone.modality["text"]
        number = self.number if self.model.training else None
        out = read_causally(self.blocks, x, real, number, memory, condition)
        return replace(out, x=self.causal.norm(out.x))

    def written(self) -> Tensor:
        """The rows (V, F) of the trunk's table that are written: a copy where these are not all of them."""
        if self.causal.vocabulary is None:
            return self.encoder.trunk.embedding()
        return self.encoder.embed(self.causal.vocabulary)

    def next_logits(self, x: Tensor, written: Tensor | None = None) -> Tensor:
        """Tokens (..., D) of `read` -> float32 logits (..., V) over what is written, see `labels`.

        Args:
            x: of `read`.
            written: what `written` gave, for who asks again and again while no weight changes; None to take it anew.
        """
        return self.encoder.output.logits(self.causal.leave(x), self.written() if written is None else written)

    def cross_entropy(self, x: Tensor, labels: Tensor, real: Tensor) -> Tensor:
        """In nats, the mean over all ranks' tokens x (N, D) that are real (N,), of labels (N,) -> ()."""
        return self.encoder.output.cross_entropy(self.causal.leave(x), self.written(), labels, real)

    def labels(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (...) of the tokenizer -> their places (...) in the logits, and which of them are written, (...) bool."""
        rows = self.encoder.rows(ids)
        places, written = self.causal.labels(rows)
        if self.encoder.unknown_row is not None:
            written = written & (rows != self.encoder.unknown_row)
        return places, written

    def ids_of(self, places: Tensor) -> Tensor:
        """Places (...) in the logits -> ids (...) of the tokenizer."""
        return self.encoder.ids_of(self.causal.rows_of(places))

    def condition(self, batch: Batch, modalities: Sequence[str]) -> Condition:
        """What texts can be written beside: N samples of a batch that holds the modalities, read alone."""
        return self.beside({m: self.model.encode(batch, m, reconstruct=False) for m in modalities})

    def beside(self, encoded: Mapping[str, EncoderOutput]) -> Condition:
        """The same of what encoders have made of each modality."""
        out = self.model.backbone([streams_of(encoded)], fuse=False, keep=True)
        return self.condition_of(out.seen, list(encoded))

    def condition_of(self, seen: Sequence[Reading], modalities: Sequence[str]) -> Condition:
        """The same of what a forward has read: `ModelOutput.seen`."""
        return condition_of(self.blocks, seen, modalities)

    def cache(self, slots: int) -> Cache:
        """An empty cache of `slots` sequences, in the dtype in which keys and values are made."""
        attention = self.blocks[0].self_attention
        weight = self.causal.position
        # Of heads that processes divide a block has its own.
        head_width = len(attention.q_norm.weight)
        shape = CacheShape(len(self.blocks), attention.heads, head_width, self.causal.context)
        return Cache(shape, slots, weight.dtype, weight.device)
