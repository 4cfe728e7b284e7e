"""A set as large as MS-COCO that takes no space to speak of: a few JPEGs under many names, each name with captions of
its own."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from mm.data.coco import CocoFolder
from mm.data.media import EncodedSample, encode_image
from mm.data.scenes import captions, scene_at
from mm.data.shard_writer import write_shards
from mm.files import write_json

DIFFERENT = 200
"""JPEGs that are really there."""
SIZE = (480, 640)
"""Of each, as most of COCO's."""
SCENES = 2000
"""Whose captions take turns, with a number behind them that makes each another one."""


def generated_coco(root: Path, split: str, images: int, texts: int, first_id: int = 1) -> Path:
    """Write a split in COCO layout, unless it is there.

    Args:
        root: of the set; images are hard links of those in `root/pool`.
        split: its name.
        images: how many, at least one.
        texts: captions of all images together, at least as many; the first images have one more than others.
        first_id: of the images.

    Returns:
        root.
    """
    path = root / "annotations" / f"captions_{split}.json"
    if path.is_file():
        return root
    pool = written_pool(root / "pool", DIFFERENT)
    (root / "images").mkdir(parents=True, exist_ok=True)
    listed = []
    annotations = []
    numbers = itertools.count()
    texts_of_scenes = said()
    for index in range(images):
        name = f"{split}_{index:06d}.jpg"
        place = root / "images" / name
        place.unlink(missing_ok=True)
        os.link(pool[index % len(pool)], place)
        listed.append({"id": first_id + index, "file_name": name})
        count = texts // images + (index < texts % images)
        for _ in range(count):
            number = next(numbers)
            high, low = divmod(number, 1000)
            text = f"{texts_of_scenes[number % len(texts_of_scenes)]}, number {high} {low}"
            annotations.append({"id": number, "image_id": first_id + index, "caption": text})
    write_json(path, {"images": listed, "annotations": annotations}, indent=None)
    return root


def written_pool(folder: Path, count: int) -> list[Path]:
    """JPEGs with the statistics of photographs, coarse colours under fine noise, which take as long to decode."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    files = []
    for number in range(count):
        path = folder / f"{number:03d}.jpg"
        if not path.is_file():
            coarse = torch.rand(1, 3, 12, 16, generator=draw) * 255
            smooth = interpolate(coarse, size=SIZE, mode="bicubic")[0]
            noise = 4 * torch.randn(3, *SIZE, generator=draw)
            pixels = (smooth + noise).clamp(0, 255).to(torch.uint8)
            path.write_bytes(encode_image(pixels, "jpg", 75))
        files.append(path)
    return files


def said() -> list[str]:
    """Captions of scenes."""
    found: list[str] = []
    for index in range(SCENES):
        found += captions(scene_at(0, "train", index))
    return found


def generated_shards(folder: Path, root: Path, split: str) -> Path:
    """The same split as shards in `folder`, unless they are there."""
    if not list(folder.glob(f"{split}*.json")):
        dataset = CocoFolder(root, split)
        write_shards(encoded_samples(dataset), folder, split)
    return folder


def encoded_samples(dataset: CocoFolder) -> Iterator[EncodedSample]:
    """All samples with the bytes of their files."""
    for index in range(len(dataset)):
        yield dataset.encoded(index)
