"""Frozen trunks run once: their features are kept on disk, keyed by weights, transform, arithmetic and data, and read
back in any order.

Extraction can be interrupted: finished chunks stay, and the next run continues after them. One process extracts, and
others that want the same features wait for it.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from encoders import Encoder, Features
from kernels.dispatch import compute_dtype
from kernels.errors import UserError
from kernels.threads import torch_threads
from mm.device import Precision, autocast
from mm.files import InUseError, locked, write_json
from mm.progress import followed

logger = logging.getLogger(__name__)
FOLDING = ("fuse", "reparameterize", "switch_to_deploy")
"""What timm's `reparameterize_model` looks for in modules."""
CHECKPOINT_CHUNKS = 8
"""Chunks between two points from which an interrupted extraction continues."""
UNFINISHED = "unfinished"
"""The folder beside that of the stores in which a store is made, and locked while it is."""
LARGE_BYTES = 1e8
LONG_MINUTES = 1
"""A store that takes more of either is announced."""
LARGEST = torch.finfo(torch.float16).max
"""What a store can hold: 65,504."""


class Extractor:
    """A frozen trunk over raw inputs (N, …) and masks (N, …) or None -> Features (N, T, F), without gradients.

    Batch norms are folded into the convolutions before them, on a copy. On a CPU each thread takes `at_once` rows at a
    time: what a convolution writes is then still in its core's cache when the next one reads it, and no layer waits
    for the slower thread. DINOv2-S and TinyViT-5M on two cores: 228 ms an image without, 158 with, at a limit of 87
    (scripts/bench_features.py).

    Args:
        encoder: whose trunk is run, on the encoder's device.
        at_once: rows that a CPU thread takes at a time.
        precision: of the run that reads the features, which they are made in.
    """

    def __init__(self, encoder: Encoder, at_once: int, precision: Precision) -> None:
        self.original = encoder
        self.at_once = at_once
        self.precision = precision
        self.device = next(encoder.parameters()).device

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder with folded batch norms; the original where nothing can be folded.

        It is made on first use: a store that is already complete needs none.
        """
        for module in self.original.modules():
            if any(hasattr(module, name) for name in FOLDING):
                from timm.models import reparameterize_model

                return reparameterize_model(self.original)  # type: ignore[return-value]
        return self.original

    @property
    def arithmetic(self) -> str:
        """The dtype in which the trunk is run: its products round differently in another one."""
        parameter = next(self.original.parameters())
        with autocast(self.precision, self.device):
            return str(compute_dtype(parameter))

    def __call__(self, inputs: Tensor, mask: Tensor | None) -> Features:
        """Run the trunk over rows, on a CPU by as many threads as torch has.

        Args:
            inputs: raw inputs (N, …) of the modality.
            mask: (N, …) bool, True where an input is real; None where all are.

        Returns:
            Features (N, T, F).
        """
        if self.device.type != "cpu":
            return self.read(inputs, mask)
        _ = self.encoder  # It is made here: otherwise every thread would make one.
        rows = inputs.split(self.at_once)
        masks = repeat(None) if mask is None else mask.split(self.at_once)
        # The pool's threads inherit this number.
        with torch_threads(1) as threads, ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(self.read, rows, masks))
        tokens = torch.cat([part.tokens for part in parts])
        real = torch.cat([part.mask for part in parts])
        return Features(tokens, real)

    def of_present(self, inputs: Tensor, mask: Tensor | None, present: Tensor) -> Features:
        """Run the trunk over the rows that are there; an absent row has no token.

        Args:
            inputs: raw inputs (N, …) of the modality.
            mask: (N, …) bool, True where an input is real; None where all are.
            present: (N,) bool.

        Returns:
            Features (N, T, F).
        """
        if bool(present.all()):
            return self(inputs, mask)
        rows = len(present)
        if not bool(present.any()):
            return Features(torch.zeros(rows, 1, self.original.trunk.width), torch.zeros(rows, 1, dtype=torch.bool))
        found = self(inputs[present], None if mask is None else mask[present])
        tokens = found.tokens.new_zeros(rows, *found.tokens.shape[1:])
        real = found.mask.new_zeros(rows, found.mask.shape[1])
        tokens[present] = found.tokens
        real[present] = found.mask
        return Features(tokens, real)

    def read(self, inputs: Tensor, mask: Tensor | None) -> Features:
        """All rows (N, …) in one call of the trunk -> Features (N, T, F), in the run's precision."""
        if mask is not None:
            mask = mask.to(self.device)
        with torch.inference_mode(), autocast(self.precision, self.device):
            return self.encoder.features(inputs.to(self.device), mask)


class FeatureStore:
    """Ragged token features of N rows: `store[i]` is (T_i, F) float16, read from a memory map.

    tokens.bin holds all tokens one after another, lengths.npy how many each row has, meta.json what they are and how
    many `seconds` the extraction took.

    Args:
        folder: of a finished store.

    Raises:
        ValueError: tokens.bin does not have the size that the other two files imply.
    """

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        width = meta["width"]
        self.folder = folder
        self.seconds: float = meta["seconds"]
        lengths = np.load(folder / "lengths.npy")
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        total = int(self.offsets[-1])
        expected = total * width * 2
        path = folder / "tokens.bin"
        actual = path.stat().st_size
        if actual != expected:
            raise UserError(
                f"feature cache {folder} holds {actual} bytes where {expected} belong: delete the folder and run again"
            )
        self.tokens = np.memmap(path, np.float16, "r", shape=(total, width))

    def __reduce__(self) -> tuple[type["FeatureStore"], tuple[Path]]:
        """A process that is sent a store opens its files: a memory map would be sent as all its bytes."""
        return FeatureStore, (self.folder,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def empty_rows(self) -> list[int]:
        """The rows without a token: of absent inputs."""
        return np.flatnonzero(np.diff(self.offsets) == 0).tolist()

    def __getitem__(self, index: int) -> Tensor:
        """A copy of one row's features (T_i, F) float16."""
        start = self.offsets[index]
        stop = self.offsets[index + 1]
        row = np.array(self.tokens[start:stop])
        return torch.from_numpy(row)


def store_key(*parts: object) -> str:
    """A short name for everything that determines a store's content: 16 hexadecimal digits of its SHA-256.

    Args:
        parts: numbers, strings, and lists or mappings of them; anything else counts by its `str`.
    """
    content = json.dumps(parts, default=str, sort_keys=True)
    digest = hashlib.sha256(content.encode())
    return digest.hexdigest()[:16]


def build_store(
    folder: Path,
    rows: int,
    chunk: int,
    features: Callable[[Sequence[int]], Features],
    description: str,
    about: dict,
    stores: int = 1,
) -> FeatureStore:
    """Open the store in a folder, or compute it: beside its parent, under a lock, and renamed once it is whole.

    Rows of an interrupted extraction are not computed again. A process that finds another one at it waits.

    Args:
        folder: of the store; it is created.
        rows: N, how many rows the store has.
        chunk: how many rows are computed at a time.
        features: computes Features (n, T, F) of the n rows at the positions that it is given.
        description: labels the progress bar, and errors.
        about: written into meta.json, so that a person can tell what a cache folder is.
        stores: how many of this size are made one after another, this one among them: the disk must hold all.

    Raises:
        ValueError: the store is finished but spoiled, a feature does not fit float16, or the disk is too small.
    """
    if folder.is_dir():
        return FeatureStore(folder)
    unfinished = folder.parent.with_name(UNFINISHED) / folder.name
    _say_if_held(unfinished, description)
    with locked(unfinished):
        if not folder.is_dir():  # Otherwise the process that was waited for has made it.
            unfinished.mkdir(exist_ok=True)
            _extract(unfinished, rows, chunk, features, description, about, stores)
            folder.parent.mkdir(parents=True, exist_ok=True)
            unfinished.rename(folder)
    return FeatureStore(folder)


def _say_if_held(path: Path, description: str) -> None:
    """Log which process makes a store that this one is about to wait for."""
    try:
        with locked(path, wait=False):
            return
    except InUseError as holder:
        logger.info("%s: waiting for %s, which makes them", description, holder)


def _extract(
    folder: Path,
    rows: int,
    chunk: int,
    features: Callable[[Sequence[int]], Features],
    description: str,
    about: dict,
    stores: int,
) -> None:
    """Write a store's files, continuing after what an interrupted extraction left; arguments as of `build_store`."""
    lengths, width, spent = _finished(folder)
    started = time.perf_counter() - spent
    with (folder / "tokens.bin").open("r+b" if lengths else "wb") as file:
        file.seek(sum(lengths) * width * 2)
        file.truncate()
        starts = range(len(lengths), rows, chunk)
        for start in followed(starts, description, rows - starts.start, chunk):
            stop = min(start + chunk, rows)
            found = features(range(start, stop))
            width = found.tokens.shape[-1]
            real = _halved(found.tokens[found.mask], description)
            if start == starts.start:
                done = time.perf_counter() - started - spent
                _say_what_it_takes(folder, rows - start, (stop - start, real.nbytes, done), description, stores)
            file.write(real.numpy().tobytes())
            lengths.extend(found.mask.sum(1).tolist())
            if (start // chunk) % CHECKPOINT_CHUNKS == CHECKPOINT_CHUNKS - 1:
                _checkpoint(file, folder, lengths, width, time.perf_counter() - started)
        _checkpoint(file, folder, lengths, width, time.perf_counter() - started)
    np.save(folder / "lengths.npy", np.array(lengths, dtype=np.int64))
    seconds = round(time.perf_counter() - started, 1)
    write_json(folder / "meta.json", {**about, "rows": rows, "width": width, "seconds": seconds})
    (folder / "partial.json").unlink()


def _say_what_it_takes(folder: Path, rows: int, first: tuple[int, int, float], description: str, stores: int) -> None:
    """Log the bytes and the minutes that a store will take, by those of its first chunk.

    Args:
        folder: where it is made.
        rows: that are still to be computed.
        first: of the first of them that are, how many, their bytes and their seconds.
        description: of the store.
        stores: of this size, one after another.

    Raises:
        UserError: the disk has not that much left.
    """
    done, size, seconds = first
    needed = size * rows / done * stores
    times = "" if stores == 1 else f", for {stores} views together"
    minutes = seconds * rows / done * stores / 60
    free = shutil.disk_usage(folder).free
    if needed > LARGE_BYTES or minutes > LONG_MINUTES:
        logger.info(
            "%s: %.1f GB and about %.0f minutes%s (%.0f GB are free)",
            description,
            needed / 1e9,
            minutes,
            times,
            free / 1e9,
        )
    if needed > free:
        raise UserError(
            f"{description}: {needed / 1e9:,.1f} GB are needed{times}, and the disk of {folder.parent} has"
            f" {free / 1e9:,.1f} GB left: name another one by --data.cache, or give fewer data.views or more image.pool"
        )


def _halved(tokens: Tensor, description: str) -> Tensor:
    """Features (n, F) as float16 in the memory of the CPU. Raises ValueError for one that float16 cannot hold."""
    half = tokens.half().cpu()
    if not half.isfinite().all():
        raise UserError(
            f"{description}: the frozen trunk gives {float(tokens.abs().max()):g}, and a store holds float16, at most"
            f" {LARGEST:,.0f}: check the trunk's weights, or set frozen=false for it, which stores nothing"
        )
    return half


def _finished(folder: Path) -> tuple[list[int], int, float]:
    """What an interrupted extraction left behind: lengths of its rows, feature width, and the seconds they took."""
    path = folder / "partial.json"
    if not path.is_file() or not (folder / "tokens.bin").is_file():
        return [], 0, 0.0
    partial = json.loads(path.read_text())
    whole = sum(partial["lengths"]) * partial["width"] * 2
    if (folder / "tokens.bin").stat().st_size < whole:
        return [], 0, 0.0  # A copy that lost its end: going on after it would leave zeros.
    return partial["lengths"], partial["width"], partial["seconds"]


def _checkpoint(file, folder: Path, lengths: list[int], width: int, seconds: float) -> None:  # type: ignore[no-untyped-def]  # a binary file
    """Sync the tokens to the disk, then say how many of them are whole."""
    file.flush()
    os.fsync(file.fileno())
    partial = {"lengths": lengths, "width": width, "seconds": seconds}
    write_json(folder / "partial.json", partial, indent=None)


def stack_rows(rows: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad rows to the longest.

    Args:
        rows: B rows (T_i, F); one that is absent has none.

    Returns:
        tokens (B, max T, F) padded with zeros, at least one of them, and mask (B, max T) bool, True where real.
    """
    rows = list(rows)
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if not tokens.shape[1]:
        tokens = tokens.new_zeros(len(rows), 1, tokens.shape[2])
    positions = torch.arange(tokens.shape[1])
    mask = positions < lengths[:, None]
    return tokens, mask
