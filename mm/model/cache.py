"""A key-value cache: what sequences have read, of every layer, in memory that is taken once.

Letters: L layers, B slots, H heads, C positions of a slot, T new tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.errors import UserError


@dataclass
class CacheShape:
    """Layers L, heads H, width of a head, and C, the longest sequence."""

    layers: int
    heads: int
    head_width: int
    context: int


class Cache:
    """Keys and values of B slots, each a sequence of its own length. A slot is emptied and used again.

    Args:
        shape: of the model.
        slots: B.
        dtype: of keys and values.
        device: where they are.
    """

    def __init__(self, shape: CacheShape, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        # The last position is for padding, which has to be written somewhere and is never read.
        size = (shape.layers, slots, shape.heads, shape.context + 1, shape.head_width)
        self.keys = torch.zeros(size, dtype=dtype, device=device)
        self.values = torch.zeros(size, dtype=dtype, device=device)
        self.lengths = [0] * slots
        """How much of each slot is filled. The host counts: asking a device would wait for it."""

    @property
    def slots(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def context(self) -> int:
        """C, the longest sequence that a slot holds."""
        return self.keys.shape[3] - 1

    def clear(self, slot: int) -> None:
        """Empty a slot; what it held is never seen again."""
        self.lengths[slot] = 0

    def reorder(self, index: Sequence[int]) -> None:
        """Let slot i go on from what slot index[i] holds, as beams do."""
        chosen = torch.tensor(index, device=self.keys.device)
        self.keys = self.keys.index_select(1, chosen)
        self.values = self.values.index_select(1, chosen)
        self.lengths = [self.lengths[slot] for slot in index]

    def new(self, counts: Sequence[int], first: int = 0) -> "NewTokens":
        """Make room for new tokens.

        Args:
            counts: of tokens for each of the slots from `first` on.
            first: the slot of the first count.

        Raises:
            ValueError: a slot has no room.
        """
        return NewTokens(self, counts, first)


class NewTokens:
    """The memory of what is added to B' slots of a cache; a `Memory` of `mm.model.causal`.

    Args:
        cache: they are added to.
        counts: B' numbers of tokens; T is the largest of them.
        first: the slot of the first count.

    Raises:
        ValueError: a slot has no room.
    """

    def __init__(self, cache: Cache, counts: Sequence[int], first: int) -> None:
        self.cache = cache
        self.counts = list(counts)
        self.part = slice(first, first + len(self.counts))
        held = cache.lengths[self.part]
        self.longest = max(before + count for before, count in zip(held, self.counts, strict=True))
        if self.longest > cache.context:
            raise UserError(f"{self.longest} tokens are more than the model's context of {cache.context}")
        device = cache.keys.device
        new = torch.arange(max(self.counts), device=device)
        self.real = new < torch.tensor(self.counts, device=device)[:, None]
        """(B', T) bool, which of the new tokens are real: the first of each row."""
        at = torch.tensor(held, device=device)[:, None] + new
        self.at = at.where(self.real, 0)
        """(B', T) int64, the positions of the new tokens in their texts; 0 of padding."""
        self.place = at.where(self.real, cache.context)
        """(B', T) int64, where they are written: padding at the position that is never read."""
        self.mask = torch.arange(self.longest, device=device) <= self.at[..., None]
        self.row = torch.arange(first, self.part.stop, device=device)[:, None]

    @property
    def is_padded(self) -> bool:
        """Whether some of the new tokens are not real."""
        return min(self.counts) < max(self.counts)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values (B', T, H, D / H), and read everything up to the longest (B', H, S, D / H)."""
        found = []
        for held, new in ((self.cache.keys[layer], keys), (self.cache.values[layer], values)):
            held[self.row, :, self.place] = new.to(held.dtype)
            found.append(held[self.part, :, : self.longest])
        return found[0], found[1]

    def keep(self) -> None:
        """Count the real tokens as read."""
        for place, count in enumerate(self.counts, self.part.start):
            self.cache.lengths[place] += count
