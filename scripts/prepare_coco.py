"""Turn a folder in COCO caption layout into shards: one sample = one image with all its captions, resized.

    python scripts/prepare_coco.py --root DIR --out SHARDS --splits '[train,val]'
    python scripts/prepare_coco.py --root DIR --out SHARDS --splits '[train+restval,val,test]' \
        --karpathy DIR/dataset_coco.json --download 2014
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mm.cli import run_command
from mm.data.coco import CocoFolder
from mm.data.prepare.download import archives, fetch, unpack
from mm.data.prepare.shards import Preparation, prepare_split

SHOWN = 10
console = Console(soft_wrap=True, highlight=False)


def prepare_coco(
    root: Path,
    out: Path,
    splits: Sequence[str] = ("train", "val"),
    karpathy: Path | None = None,
    audio_root: Path | None = None,
    size: int = 224,
    side: Literal["short", "long"] = "short",
    quality: int = 90,
    samples_per_shard: int = 1000,
    workers: int = os.cpu_count() or 1,
    download: Literal["2014", "2017"] | None = None,
    mirror: str | None = None,
) -> None:
    """Write shards of some splits; started again after a kill, it goes on where it stopped.

    Args:
        root: the folder in COCO caption layout (where --download puts it).
        out: folder for the shards.
        splits: names as in `captions_<split>.json`, or Karpathy's train, restval, val, test, train+restval.
        karpathy: the official dataset_coco.json.
        audio_root: where `audio/` lies, if not in root.
        size: pixels that the image's side is reduced to; smaller images are kept as they are.
        side: which side `size` measures; the aspect is kept.
        quality: JPEG quality of resized images.
        samples_per_shard: images in one tar.
        workers: images decoded at a time.
        download: fetch this year's official archives into root first.
        mirror: address to fetch from instead of images.cocodataset.org.
    """
    preparation = Preparation(size, side, quality, samples_per_shard)
    if download is not None:
        _download(root, download, splits, karpathy is not None, mirror)
    for split in splits:
        dataset = CocoFolder(root, split, karpathy=karpathy, audio_root=audio_root)
        _list(f"{len(dataset.missing)} images are not on disk", dataset.missing)
        columns = (TextColumn(split), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(split, total=len(dataset))
            done = prepare_split(
                dataset,
                out,
                split,
                preparation,
                workers=workers,
                advance=lambda count: progress.advance(task, count),  # noqa: B023  # used in the loop
            )
        _list(f"{len(done.skipped_lines)} files cannot be read", done.skipped_lines)
        kept = f", {done.kept_shards} shards kept from an earlier run" if done.kept_shards else ""
        console.print(f"{split}: {done.samples} images with their captions in {done.index.parent}{kept}")


def _download(root: Path, year: str, splits: Sequence[str], karpathy: bool, mirror: str | None) -> None:
    names = {name.removesuffix(year) for split in splits for name in split.split("+")}
    parts = {"train" if name == "train" else "val" for name in names}
    for address in archives(year, parts, karpathy, mirror):
        with Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console
        ) as progress:
            task = progress.add_task(address.rpartition("/")[2], total=None)
            archive = fetch(
                address,
                root,
                lambda name, there, total: progress.update(task, completed=there, total=total),  # noqa: B023
            )
        console.print(f"{archive}: {unpack(archive, root)} files unpacked")


def _list(title: str, lines: Sequence[str]) -> None:
    if lines:
        more = [f"… and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        console.print("\n  ".join([f"{title}; going on without them:", *lines[:SHOWN], *more]), markup=False)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(message)s")
    try:
        run_command(prepare_coco)
    except KeyboardInterrupt:
        print("prepare_coco: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
