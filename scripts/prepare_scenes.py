"""Write the embedded data, `scenes`, as webdataset shards or as a folder in COCO caption layout.

python scripts/prepare_scenes.py --root data/scenes
python scripts/prepare_scenes.py --root data/scenes_coco --layout coco --val 5000
"""

from pathlib import Path
from typing import Annotated

from mm.cli import run_command
from mm.data.scenes import Layout, write_scenes


def prepare_scenes(
    root: Path,
    layout: Layout = "shards",
    seed: Annotated[int, "[0, inf)"] = 0,
    train: Annotated[int, "[0, inf)"] = 4000,
    val: Annotated[int, "[0, inf)"] = 1000,
    seen: Annotated[int, "[0, inf)"] = 1000,
    test: Annotated[int, "[0, inf)"] = 0,
    image_size: Annotated[int, "[16, inf)"] = 64,
) -> None:
    """Write scenes to a folder; a split of size 0 is skipped.

    Args:
        root: the folder to write; scenes that are there are replaced, anything else is refused.
        layout: shards (one sample = one image with its captions and audio) or coco (annotations/, images/, audio/).
        seed: another seed, other scenes.
        train: scenes to train on, without the held-out pairs of attributes.
        val: scenes with a held-out pair each.
        seen: unseen scenes without held-out pairs, for the gap to val.
        test: more scenes like val.
        image_size: side of the images in pixels.
    """
    sizes = {"train": train, "val": val, "seen": seen, "test": test}
    sizes = {split: size for split, size in sizes.items() if size}
    print(write_scenes(root, seed=seed, sizes=sizes, image_size=image_size, layout=layout))


if __name__ == "__main__":
    run_command(prepare_scenes)
