"""Captioned images and audio clips on disk, and the batches made of them."""

from pathlib import Path

from kernels.errors import UserError
from mm.data.dataset import CaptionDataset


def open_split(
    root: str | Path, split: str, *, karpathy: str | Path | None = None, audio_root: str | Path | None = None
) -> CaptionDataset:
    """Open a split by what is on disk: shards `<root>/<split>-*.tar` if there are any, else the COCO caption layout.

    Raises FileNotFoundError for a missing folder or annotation file (naming the splits that exist), ValueError for
    files that cannot be read and for img2dataset's shards.
    """
    # What reads a layout is imported with the first folder of it: `import mm.data` needs no pycocotools.
    from mm.data.shard_index import foreign_shard, has_shards, img2dataset_shards

    if karpathy is None and has_shards(Path(root), split):
        if audio_root is not None:
            raise UserError(f"data.audio_root={audio_root} has no effect: {root} holds shards, with audio of their own")
        from mm.data.shards import ShardFolder

        return ShardFolder(root, split)
    foreign = img2dataset_shards(Path(root))
    if foreign and not (Path(root) / "annotations").is_dir():
        raise UserError(foreign_shard(foreign[0]))
    from mm.data.coco import CocoFolder

    return CocoFolder(root, split, karpathy=karpathy, audio_root=audio_root)


__all__ = ["CaptionDataset", "open_split"]
