"""Frozen trunks run once: their features are kept on disk, keyed by weights, transform and data, and read back at
random.

Extraction can be interrupted: finished chunks stay, and the next run goes on behind them.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from encoders import Encoder, Features
from kernels.dispatch import bf16_autocast
from mm.files import write_json

FOLDING = ("fuse", "reparameterize", "switch_to_deploy")
"""What timm's `reparameterize_model` looks for in modules."""


class Extractor:
    """A frozen trunk over raw inputs (N, …) and masks (N, …) or None -> Features (N, T, F), without gradients.

    Batch norms are folded into the convolutions before them, on a copy. On a CPU each thread takes `at_once` rows at a
    time: what a convolution writes is then still in its core's cache when the next one reads it, and no layer waits
    for the slower thread. DINOv2-S and TinyViT-5M on two cores: 228 ms an image without, 158 with, at a limit of 87
    (scripts/bench_features.py).
    """

    def __init__(self, encoder: Encoder, at_once: int) -> None:
        self.original = encoder
        self.at_once = at_once
        self.device = next(encoder.parameters()).device

    @cached_property
    def encoder(self) -> Encoder:
        """Made on first use: a store that is there needs none. Without anything to fold it is the original."""
        for module in self.original.modules():
            if any(hasattr(module, name) for name in FOLDING):
                from timm.models import reparameterize_model

                return reparameterize_model(self.original)  # type: ignore[return-value]
        return self.original

    def __call__(self, inputs: Tensor, mask: Tensor | None) -> Features:
        if self.device.type != "cpu":
            return self.read(inputs, mask)
        _ = self.encoder  # made before the threads would make one each
        masks = repeat(None) if mask is None else mask.split(self.at_once)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # which is what the pool's threads begin with
        try:
            with ThreadPoolExecutor(threads) as pool:
                parts = list(pool.map(self.read, inputs.split(self.at_once), masks))
        finally:
            torch.set_num_threads(threads)
        return Features(torch.cat([p.tokens for p in parts]), torch.cat([p.mask for p in parts]))

    def read(self, inputs: Tensor, mask: Tensor | None) -> Features:
        """All rows at a time."""
        with torch.inference_mode(), bf16_autocast(self.device.type):
            return self.encoder.features(inputs.to(self.device), None if mask is None else mask.to(self.device))


class FeatureStore:
    """Ragged token features of N rows: `store[i]` is (T_i, F) float16, read from a memory map. `seconds`: what
    making them took.

    tokens.bin holds all tokens one after another, lengths.npy how many each row has, meta.json what they are.
    """

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        self.seconds: float = meta["seconds"]
        lengths = np.load(folder / "lengths.npy")
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        expected = int(self.offsets[-1]) * meta["width"] * 2
        actual = (folder / "tokens.bin").stat().st_size
        if actual != expected:
            raise ValueError(
                f"feature cache {folder} holds {actual} bytes where {expected} belong: delete the folder and run again"
            )
        self.tokens = np.memmap(folder / "tokens.bin", np.float16, "r", shape=(int(self.offsets[-1]), meta["width"]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(self.tokens[self.offsets[index] : self.offsets[index + 1]]))


def store_key(*parts: object) -> str:
    """A short name for everything that determines a store's content."""
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:16]


def build_store(
    folder: Path, rows: int, chunk: int, features: Callable[[Sequence[int]], Features], description: str, about: dict
) -> FeatureStore:
    """Open the store in `folder`, computing what is missing: `features(indices)` gives Features (n, T, F) of the
    rows asked for.

    Args:
        about: written into meta.json, so that a person can tell what a cache folder is.
    """
    if (folder / "meta.json").is_file():
        return FeatureStore(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lengths, width, spent = _finished(folder)
    started = time.perf_counter() - spent
    with (folder / "tokens.bin").open("r+b" if lengths else "wb") as file:
        file.seek(sum(lengths) * width * 2)
        file.truncate()
        starts = range(len(lengths), rows, chunk)
        for start in track(starts, description, disable=len(starts) < 3):
            found = features(range(start, min(start + chunk, rows)))
            width = found.tokens.shape[-1]
            file.write(found.tokens[found.mask].half().cpu().numpy().tobytes())
            lengths.extend(found.mask.sum(1).tolist())
            if (start // chunk) % 8 == 7:
                _checkpoint(file, folder, lengths, width, time.perf_counter() - started)
        _checkpoint(file, folder, lengths, width, time.perf_counter() - started)
    np.save(folder / "lengths.npy", np.array(lengths, dtype=np.int64))
    write_json(
        folder / "meta.json",
        {**about, "rows": rows, "width": width, "seconds": round(time.perf_counter() - started, 1)},
    )
    (folder / "partial.json").unlink()
    return FeatureStore(folder)


def _finished(folder: Path) -> tuple[list[int], int, float]:
    """Lengths of the rows that an interrupted extraction left behind, the feature width, and the seconds they took."""
    if not (folder / "partial.json").is_file() or not (folder / "tokens.bin").is_file():
        return [], 0, 0.0
    partial = json.loads((folder / "partial.json").read_text())
    return partial["lengths"], partial["width"], partial["seconds"]


def _checkpoint(file, folder: Path, lengths: list[int], width: int, seconds: float) -> None:  # type: ignore[no-untyped-def]  # a binary file
    file.flush()
    os.fsync(file.fileno())
    write_json(folder / "partial.json", {"lengths": lengths, "width": width, "seconds": seconds}, indent=None)


def stack_rows(rows: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows (T_i, F) -> tokens (B, max T, F) padded with zeros, mask (B, max T) bool."""
    rows = list(rows)
    lengths = torch.tensor([len(r) for r in rows])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.arange(int(lengths.max())) < lengths[:, None]
