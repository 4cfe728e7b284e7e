"""How many bytes of tensors are alive at once, of those that are made within: no device has to count them."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mm.parallel.experts import local

BETWEEN = 64
"""Tensors after which all are counted anew: FSDP2 empties and refills what it gathers, which no operation says."""


class LargestAlive(TorchDispatchMode):
    """The most bytes that tensors made within hold together, in `bytes`.

    What is made inside of one operation and gone behind it is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.alive: dict[int, weakref.ref[Any]] = {}
        self.sum = 0
        self.met = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note what it made."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self.note(local(leaf).untyped_storage())
        return out

    def note(self, storage: torch.UntypedStorage) -> None:
        """Count a tensor's memory, once."""
        key = storage._cdata
        known = self.alive.get(key)
        if known is not None and known() is not None:
            return
        self.alive[key] = weakref.ref(storage)
        self.sum += storage.nbytes()
        self.met += 1
        if self.sum > self.bytes or self.met % BETWEEN == 0:
            self.count()
            self.bytes = max(self.bytes, self.sum)

    def count(self) -> None:
        """Add up what is alive."""
        held = {key: reference() for key, reference in self.alive.items()}
        self.alive = {key: weakref.ref(storage) for key, storage in held.items() if storage is not None}
        self.sum = sum(storage.nbytes() for storage in held.values() if storage is not None)
