"""Turn a folder in COCO caption layout into shards: one sample = one image with all its captions, resized.

    python scripts/prepare_coco.py --root DIR --out SHARDS --splits '[train,val]'
    python scripts/prepare_coco.py --root DIR --out SHARDS --splits '[train+restval,val,test]' \
        --karpathy DIR/dataset_coco.json --download 2014
"""

import logging

from mm.cli import run_command
from mm.data.coco import CocoFolder
from mm.data.prepare.console import console, count_bar, print_list, resumable
from mm.data.prepare.download import download_coco
from mm.data.prepare.shards import CocoPreparation, Preparation, prepare_split


def prepare_coco(config: CocoPreparation) -> None:
    """Fetch the archives if asked to, and write the shards of each split."""
    preparation = Preparation(config.size, config.side, config.quality, config.samples_per_shard)
    if config.download is not None:
        download_coco(config.root, config.download, config.splits, config.karpathy is not None, config.mirror)
    for split in config.splits:
        dataset = CocoFolder(config.root, split, karpathy=config.karpathy, audio_root=config.audio_root)
        print_list(f"{len(dataset.missing)} images are not on disk; going on without them:", dataset.missing)
        with count_bar(split, len(dataset)) as advance:
            done = prepare_split(dataset, config.out, split, preparation, workers=config.workers, advance=advance)
        print_list(f"{len(done.skipped)} files cannot be read; going on without them:", done.skipped)
        if done.reencoded:
            console.print(
                f"{done.reencoded} images were re-encoded as JPEG of quality {config.quality}, their {config.side} side"
                f" at most {config.size} pixels; the others keep the bytes of their files"
            )
        kept = f", {done.kept_shards} shards kept from an earlier run" if done.kept_shards else ""
        console.print(f"{split}: {done.samples} images with their captions in {done.index.parent}{kept}")


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(message)s")
    with resumable("prepare_coco"):
        run_command(CocoPreparation, prepare_coco)
