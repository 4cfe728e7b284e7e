"""Images resized once into shards. What cannot be read is listed and skipped; an interrupted run is resumed."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL.Image import Image, Resampling

from mm.data.coco import CocoFolder
from mm.data.media import (
    AUDIO_EXTENSIONS,
    IMAGE_EXTENSIONS,
    EncodedSample,
    decode_audio,
    decode_image,
    encode_image,
)
from mm.data.shard_index import index_path, read_index
from mm.data.shards import ShardFolder, SplitWriter


@dataclass(frozen=True)
class Preparation:
    """How images go into shards."""

    size: int = 224
    """Pixels that `side` is reduced to; smaller images are kept as they are."""
    side: Literal["short", "long"] = "short"
    """Which side `size` measures; the aspect is always kept."""
    quality: int = 90
    """JPEG quality of resized images."""
    samples_per_shard: int = 1000
    """Images in one tar."""

    def __post_init__(self) -> None:
        if self.size < 1 or not 1 <= self.quality <= 95 or self.samples_per_shard < 1:
            raise ValueError(f"size and samples_per_shard must be positive and quality in 1..95, got {self}")


@dataclass(frozen=True)
class Prepared:
    """What one split came to: samples written, shards kept from an earlier run, and a line per thing skipped."""

    index: Path
    samples: int
    kept_shards: int
    skipped_lines: list[str]


def prepare_split(
    dataset: CocoFolder,
    folder: str | Path,
    split: str,
    preparation: Preparation,
    *,
    workers: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> Prepared:
    """Write a COCO split as shards. `advance` is called with the number of images dealt with, for a progress bar."""
    settings = {**asdict(preparation), "source": _fingerprint(dataset), "skipped": dataset.skipped}
    if (whole := _already_whole(folder, split, settings)) is not None:
        advance(len(dataset))
        return whole
    writer, kept, skipped_lines, samples = SplitWriter(folder, split, settings), 0, list[str](), 0
    with ThreadPoolExecutor(workers) as pool:
        for number, first in enumerate(range(0, len(dataset), preparation.samples_per_shard)):
            positions = range(first, min(first + preparation.samples_per_shard, len(dataset)))
            record = writer.finished(number)
            kept += record is not None
            if record is None:
                record = _write(writer, number, dataset, positions, preparation, pool, advance)
            else:
                advance(len(positions))
            skipped_lines += record["left_out"]
            samples += len(record["samples"])
    return Prepared(writer.close(), samples, kept, skipped_lines)


def shrunk(image: Image, size: int, side: Literal["short", "long"]) -> Image:
    """Reduce so that the short or long side measures `size` pixels, keeping the aspect; never enlarges."""
    measured = min(image.size) if side == "short" else max(image.size)
    if measured <= size:
        return image
    width, height = (max(1, round(length * size / measured)) for length in image.size)
    return image.resize((width, height), Resampling.BICUBIC, reducing_gap=3.0)


def _write(
    writer: SplitWriter,
    number: int,
    dataset: CocoFolder,
    positions: range,
    preparation: Preparation,
    pool: ThreadPoolExecutor,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    samples, skipped_lines = [], []
    for sample, troubles in pool.map(lambda position: _prepared(dataset, position, preparation), positions):
        skipped_lines += troubles
        if sample is not None:
            samples.append(sample)
        advance(1)
    return writer.write(number, samples, skipped_lines)


def _prepared(dataset: CocoFolder, position: int, preparation: Preparation) -> tuple[EncodedSample | None, list[str]]:
    """One sample with its image reduced and its audio checked, and what had to be skipped of it."""
    try:
        sample = dataset.encoded(position)
        extension, data = next((e, d) for e, d in sample.members.items() if e not in AUDIO_EXTENSIONS)
        image = decode_image(data, str(dataset.files[position]))
    except (OSError, ValueError) as error:
        return None, [str(error)]
    smaller = shrunk(image, preparation.size, preparation.side)
    if smaller is not image or extension not in IMAGE_EXTENSIONS:
        extension, data = "jpg", encode_image(smaller, "jpg", preparation.quality)
    members, troubles = {extension: data}, []
    for kind in sample.members.keys() & set(AUDIO_EXTENSIONS):
        try:
            decode_audio(sample.members[kind], f"{sample.key}.{kind}")
            members[kind] = sample.members[kind]
        except ValueError as error:
            troubles.append(str(error))
    return replace(sample, members=members), troubles


def _already_whole(folder: str | Path, split: str, settings: dict[str, Any]) -> Prepared | None:
    if not index_path(folder, split).is_file():
        return None
    index = read_index(folder, split)
    if index["settings"] != settings:
        return None
    ShardFolder(folder, split).verify()
    return Prepared(index_path(folder, split), len(index["samples"]), len(index["shards"]), index["left_out"])


def _fingerprint(dataset: CocoFolder) -> str:
    """Changes with any image, caption or audio of the split, so that shards of other data are not kept."""
    files = [(path.name, path.stat().st_size if path.exists() else None) for path in dataset.files]
    content = [files, dataset.image_ids, dataset.captions, dataset.caption_ids, dataset.has_audio]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
