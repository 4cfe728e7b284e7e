"""A causal reading of the shared blocks: text that is continued from itself, beside a condition that does not read it.

Letters: B sequences, T tokens of each, S positions that are looked at, D width, F width of the trunk's token table,
V rows of that table that are written, H heads.

A token enters as its row of the trunk's table, never through the trunk, which reads in both directions. It sees the
tokens before it through a block's self-attention and the condition through its cross-modal attention, and passes the
same experts as everything else. What it sees of the condition is what `match` sees of the other side, but of a side
that was read alone: keys and values are computed once, whatever is written beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass, tree_map

from kernels.padding import real_rows
from kernels.rms_norm import RMSNorm
from mm.model.packed import Layout, Reading


class Memory(Protocol):
    """What a sequence has read before: keys and values of every layer."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, T, H, D / H) of new tokens -> those of everything read, (B, H, S, D / H) each."""
        ...

    @property
    def mask(self) -> Tensor:
        """(B, T, S) bool, which of everything each new token sees; at least one."""
        ...


class Whole:
    """The memory of sequences that are read whole: what each token sees is what stands before it.

    Args:
        real: (B, T) bool, True where a token is real. The first is always seen: a softmax over nothing is not defined.
    """

    def __init__(self, real: Tensor) -> None:
        length = real.shape[1]
        place = torch.arange(length, device=real.device)
        before = place[:, None] >= place
        self.mask = before & (real | (place == 0))[:, None]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, T, H, D / H) -> (B, H, T, D / H), of the same tokens."""
        return keys.transpose(1, 2), values.transpose(1, 2)


@dataclass
class Condition:
    """What text is written beside: of every layer keys and values (B, H, S, D / H), and mask (B, S) bool of its real
    tokens; attends (B,) bool, the sequences that have one."""

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor
    attends: Tensor

    def of_layer(self, layer: int) -> "LayerCondition":
        """What one layer attends to."""
        return LayerCondition(self.keys[layer], self.values[layer], self.mask, self.attends)

    def rows(self, index: Tensor) -> "Condition":
        """Some sequences, or one several times: index (b,) int64."""
        return tree_map(lambda x: x[index], self)

    @staticmethod
    def joined(parts: Sequence["Condition"]) -> "Condition":
        """The sequences of several, one after another."""
        return tree_map(lambda *x: torch.cat(x), *parts)


@dataclass
class LayerCondition:
    """A condition as one layer attends to it: keys and values (B, H, S, D / H), mask (B, S) and attends (B,) bool."""

    keys: Tensor
    values: Tensor
    mask: Tensor
    attends: Tensor


@dataclass
class CausalOutput:
    """What a causal reading returns: tokens x (B, T, D), normed; the router's losses by name; load (layers, M, E), None
    where it is not counted."""

    x: Tensor
    losses: dict[str, Tensor]
    load: Tensor | None


for result in (Condition, LayerCondition, CausalOutput):
    register_dataclass(result)


class CausalText(nn.Module):
    """What text needs beside the shared blocks to be written: a way in, positions, and a way out tied to the way in
    (Press & Wolf 2017).

    Args:
        table_width: F.
        width: D.
        positions: the longest sequence, T at most.
        vocabulary: (V,) int64, sorted, the rows of the trunk's table that are written; None for all of them. A buffer,
            stored with the weights.
    """

    vocabulary: Tensor | None

    def __init__(self, table_width: int, width: int, positions: int, vocabulary: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("vocabulary", vocabulary)
        # A table's rows are small: without a norm the bias of what follows would outweigh which token it is.
        self.token_norm = RMSNorm(table_width)
        self.enter = nn.Linear(table_width, width)
        self.position = nn.Parameter(torch.randn(positions, width) * 0.02)
        self.norm = RMSNorm(width)
        self.leave = nn.Linear(width, table_width)

    @property
    def context(self) -> int:
        """The longest sequence."""
        return len(self.position)

    def embed(self, tokens: Tensor, at: Tensor) -> Tensor:
        """Token embeddings (B, T, F), positions at (B, T) int64 or (T,) -> (B, T, D)."""
        return self.enter(self.token_norm(tokens)) + self.position[at]

    def labels(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (...) of the trunk's table -> their places (...) in the logits, and which have one, (...) bool."""
        if self.vocabulary is None:
            return rows, torch.ones_like(rows, dtype=torch.bool)
        place = torch.searchsorted(self.vocabulary, rows.contiguous()).clamp(max=len(self.vocabulary) - 1)
        return place, self.vocabulary[place] == rows

    def rows_of(self, labels: Tensor) -> Tensor:
        """Places (...) in the logits -> rows (...) of the trunk's table."""
        return labels if self.vocabulary is None else self.vocabulary[labels]


def condition_of(blocks: Sequence[Any], seen: Sequence[Reading], modalities: Sequence[str]) -> Condition:
    """Keys and values of what was read alone.

    Args:
        blocks: of the backbone.
        seen: of every layer, streams (B, S_m, D) by modality as others see them.
        modalities: which of them are the condition, one after another.
    """
    keys = []
    values = []
    for block, reading in zip(blocks, seen, strict=True):
        x = torch.cat([reading[m].x for m in modalities], 1)
        k, v = block.keys_values(x)
        keys.append(k)
        values.append(v)
    mask = torch.cat([seen[0][m].mask for m in modalities], 1)
    return Condition(keys, values, mask, mask.any(1))


def read_causally(
    blocks: Sequence[Any],
    x: Tensor,
    real: Tensor | None,
    number: int | None,
    memory: Memory,
    condition: Condition | None,
) -> CausalOutput:
    """Send new tokens of B sequences through all blocks.

    Args:
        blocks: of the backbone.
        x: (B, T, D), as `CausalText.embed` makes them.
        real: (B, T) bool, the tokens that count; None for all.
        number: of the modality text in the experts' load; None where nothing is counted.
        memory: what was read before, which the tokens are added to.
        condition: B sequences of what is read beside; None for text alone.

    Returns:
        CausalOutput; x is not normed here.
    """
    layout = _layout(x, real, number)
    losses: dict[str, Tensor] = {}
    loads = []
    for layer, block in enumerate(blocks):
        beside = None if condition is None else condition.of_layer(layer)
        out = block.read_causally(x, layout, layer, memory, beside)
        x = out.x
        if out.load is not None:
            loads.append(out.load)
        for name, value in out.losses.items():
            losses[name] = losses[name] + value if name in losses else value
    return CausalOutput(x, losses, torch.stack(loads) if loads else None)


def _layout(x: Tensor, real: Tensor | None, number: int | None) -> Layout:
    """Where tokens x (B, T, D) stand, all of them of one modality."""
    modality = None if number is None else x.new_full(x.shape[:2], number, dtype=torch.int64).flatten()
    if real is None:
        return Layout([], [], None, None, modality)
    rows = real_rows(real)
    if rows is None:
        return Layout([], [], None, real.flatten(), modality)
    return Layout([], [], rows, None, None if modality is None else modality[rows])
