"""A field's data written as a folder that every other script reads."""

from collections.abc import Iterator
from pathlib import Path

from rich.progress import track

from kernels.errors import UserError
from mm.batch import Sample
from mm.data.coco import write_coco
from mm.data.dataset import CaptionDataset
from mm.data.domains.base import DomainAdapter
from mm.data.prepare.console import console, print_list
from mm.data.scenes import Layout
from mm.data.shard_writer import write_shards


def write_domain(
    adapter: DomainAdapter, out: Path, layout: Layout, *, held_out: float, seed: int, limit: int | None
) -> None:
    """Write `train` and `val` of a domain set, saying what of it was skipped.

    Args:
        adapter: its rows.
        out: the folder to write.
        layout: coco (annotations/, images/, audio/) or shards.
        held_out: share of the rows that become `val`.
        seed: another seed, another split.
        limit: at most this many rows of each split.

    Raises ValueError for an adapter without rows, and for a row that is wrong.
    """
    if not len(adapter):
        raise UserError(f"{adapter.name} is empty: a domain set needs at least one row")
    print_list(f"{len(adapter.skipped)} rows skipped:", adapter.skipped)
    write = write_coco if layout == "coco" else write_shards
    for split, rows in adapter.splits(held_out, seed).items():
        dataset = adapter.dataset(split, rows[:limit], augment=split == "train")
        write(_samples(dataset, f"writing {split}"), out, split, image_format="png")
        captions = sum(len(texts) for texts in dataset.captions)
        console.print(f"{split}: {len(dataset)} rows, {captions} captions in {out}", markup=False)


def _samples(dataset: CaptionDataset, title: str) -> Iterator[Sample]:
    """A dataset's samples in order, with a bar."""
    for index in track(range(len(dataset)), title, console=console):
        yield dataset[index]
