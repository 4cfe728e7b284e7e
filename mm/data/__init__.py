"""Captioned images and audio clips on disk, and the batches made of them."""

from pathlib import Path

from mm.data.coco import CocoFolder
from mm.data.dataset import CaptionDataset
from mm.data.domains.base import DomainAdapter
from mm.data.shard_index import has_shards
from mm.data.shards import ShardFolder


def open_split(
    root: str | Path, split: str, *, karpathy: str | Path | None = None, audio_root: str | Path | None = None
) -> CaptionDataset:
    """Open a split by what is on disk: shards `<root>/<split>-*.tar` if there are any, else the COCO caption layout.

    Raises FileNotFoundError for a missing folder or annotation file (naming the splits that exist), ValueError for
    files that cannot be read.
    """
    if karpathy is None and has_shards(root, split):
        return ShardFolder(root, split)
    return CocoFolder(root, split, karpathy=karpathy, audio_root=audio_root)


__all__ = ["CaptionDataset", "CocoFolder", "DomainAdapter", "ShardFolder", "open_split"]
