"""How long finished runs take, interleaved in one process on one core."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kernels.threads import torch_threads
from kernels.timing import Contest
from mm.artifacts.run import Run, load_run
from mm.config import encoders_of
from mm.modalities import probe_batch

REPEATS = 15
TIMED = ("image", "text")


def milliseconds_of(folders: Sequence[Path]) -> list[dict[str, float]]:
    """Milliseconds in which each run embeds one image and one caption, on one core in float32, median of a few.

    Args:
        folders: of runs that read images and text.
    """
    runs = [load_run(folder) for folder in folders]
    found: list[dict[str, float]] = [{} for _ in runs]
    with torch_threads(1):
        for modality in TIMED:
            contestants = {str(number): embedding(run, modality) for number, run in enumerate(runs)}
            for row in Contest("embed", modality, "float32", "forward", contestants).rows(REPEATS):
                found[int(row["implementation"])][modality] = row["milliseconds"]
    return found


def embedding(run: Run, modality: str) -> Callable[[], Any]:
    """What embeds one row of the probe batch."""
    one = first_row(probe_batch(encoders_of(run.config)).select([modality]))
    return torch.inference_mode()(partial(run.model, one, reconstruct=False))


def first_row(batch: Any) -> Any:
    """A batch of its first sample alone."""
    return torch.utils._pytree.tree_map(lambda x: x[:1], batch)
