"""Images resized once into shards. What cannot be read is listed and skipped; an interrupted run is resumed."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from kernels.ranges import check_ranges
from mm.data.coco import CocoFolder
from mm.data.media import AUDIO_EXTENSIONS, WRITTEN_IMAGES, EncodedSample, decode_audio, decode_image, encode_image
from mm.data.shard_index import index_path, read_index
from mm.data.shard_writer import SplitWriter
from mm.data.shards import ShardFolder


@dataclass(frozen=True)
class Preparation:
    """How images go into shards."""

    size: Annotated[int, "[1, inf)"] = 224
    """Pixels that `side` is reduced to; smaller images are kept as they are."""
    side: Literal["short", "long"] = "short"
    """Which side `size` measures; the aspect is always kept."""
    quality: Annotated[int, "[1, 95]"] = 90
    """JPEG quality of resized images."""
    samples_per_shard: Annotated[int, "[1, inf)"] = 1000
    """Images in one tar."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class CocoPreparation:
    """Write shards of some splits; started again after a kill, it goes on where it stopped."""

    root: Path
    """the folder in COCO caption layout (where --download puts it)."""
    out: Path
    """folder for the shards."""
    splits: Sequence[str] = ("train", "val")
    """names as in `captions_<split>.json`, or Karpathy's train, restval, val, test, train+restval."""
    karpathy: Path | None = None
    """the official dataset_coco.json."""
    audio_root: Path | None = None
    """where `audio/` lies, if not in root."""
    size: Annotated[int, "[1, inf)"] = Preparation.size
    """pixels that the image's side is reduced to; smaller images are kept as they are."""
    side: Literal["short", "long"] = Preparation.side
    """which side `size` measures; the aspect is kept."""
    quality: Annotated[int, "[1, 95]"] = Preparation.quality
    """JPEG quality of resized images."""
    samples_per_shard: Annotated[int, "[1, inf)"] = Preparation.samples_per_shard
    """images in one tar."""
    workers: Annotated[int, "[1, inf)"] = os.cpu_count() or 1
    """images decoded at a time."""
    download: Literal["2014", "2017"] | None = None
    """fetch this year's official archives into root first."""
    mirror: str | None = None
    """address to fetch from instead of images.cocodataset.org."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Prepared:
    """What one split came to."""

    index: Path
    samples: int
    """Samples in its shards."""
    kept_shards: int
    """Shards of an earlier run that needed not be written again."""
    skipped: list[str]
    """A line for each thing that could not be read."""
    reencoded: int
    """Images that were reduced or are of a kind that shards do not hold; the others keep the bytes of their files."""


def prepare_split(
    dataset: CocoFolder,
    folder: str | Path,
    split: str,
    preparation: Preparation,
    *,
    workers: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> Prepared:
    """Write a COCO split as shards. `advance` is called with the number of images dealt with, for a progress bar.

    Raises ValueError if no image can be read.
    """
    settings = {**asdict(preparation), "source": _fingerprint(dataset), "skipped": dataset.skipped}
    whole = _already_whole(Path(folder), split, settings)
    if whole is not None:
        advance(len(dataset))
        return whole
    writer = SplitWriter(folder, split, settings)
    shards = _chunks(len(dataset), preparation.samples_per_shard)
    kept = 0
    samples = 0
    skipped: list[str] = []
    reencoded = 0
    with ThreadPoolExecutor(workers) as pool:
        for number, positions in enumerate(shards):
            record = writer.finished(number)
            if record is None:
                prepared = _prepared_samples(dataset, positions, preparation, pool, advance)
                encoded = [each.sample for each in prepared if each.sample is not None]
                unreadable = [trouble for each in prepared for trouble in each.troubles]
                record = writer.write(number, encoded, unreadable, sum(each.reencoded for each in prepared))
            else:
                kept += 1
                advance(len(positions))
            samples += len(record["samples"])
            skipped += record["left_out"]
            reencoded += record.get("reencoded", 0)
    return Prepared(writer.close(), samples, kept, skipped, reencoded)


def shrunk(image: Tensor, size: int, side: Literal["short", "long"]) -> Tensor:
    """Reduce (3, H, W) uint8 so that the short or long side measures `size` pixels, keeping the aspect; never
    enlarges."""
    height, width = image.shape[1:]
    measured = min(height, width) if side == "short" else max(height, width)
    if measured <= size:
        return image
    height = max(1, round(height * size / measured))
    width = max(1, round(width * size / measured))
    return resize(image, [height, width], InterpolationMode.BICUBIC, antialias=True)


def _chunks(count: int, size: int) -> list[range]:
    """The positions 0 … count - 1, `size` at a time."""
    positions = range(count)
    return [positions[first : first + size] for first in range(0, count, size)]


@dataclass(frozen=True)
class _PreparedSample:
    """What became of one sample."""

    sample: EncodedSample | None
    """None where its image cannot be read."""
    troubles: list[str]
    """A line for each thing of it that could not be read."""
    reencoded: bool = False
    """Whether its image is not the bytes of the file."""


def _prepared_samples(
    dataset: CocoFolder,
    positions: range,
    preparation: Preparation,
    pool: ThreadPoolExecutor,
    advance: Callable[[int], None],
) -> list[_PreparedSample]:
    """The samples of one shard."""
    found = []
    for prepared in pool.map(lambda position: _prepared(dataset, position, preparation), positions):
        found.append(prepared)
        advance(1)
    return found


def _prepared(dataset: CocoFolder, position: int, preparation: Preparation) -> _PreparedSample:
    """One sample with its image reduced and its audio checked, and what had to be skipped of it."""
    name = str(dataset.files[position])
    try:
        sample = dataset.encoded(position)
        members = _reduced_image(sample, name, preparation)
    except (OSError, ValueError) as error:
        return _PreparedSample(None, [str(error)])
    kept = members.items() <= sample.members.items()
    troubles = []
    for extension, data in sample.members.items():
        if extension not in AUDIO_EXTENSIONS:
            continue
        try:
            decode_audio(data, f"{sample.key}.{extension}")
            members[extension] = data
        except ValueError as error:
            troubles.append(str(error))
    return _PreparedSample(replace(sample, members=members), troubles, reencoded=not kept)


def _reduced_image(sample: EncodedSample, name: str, preparation: Preparation) -> dict[str, bytes]:
    """The sample's image as a member; its own bytes, if it is small enough and of a kind that shards hold.

    Raises ValueError, naming the image, if it does not decode.
    """
    extension = next(extension for extension in sample.members if extension not in AUDIO_EXTENSIONS)
    data = sample.members[extension]
    image = decode_image(data, name)
    smaller = shrunk(image, preparation.size, preparation.side)
    if smaller is image and extension in WRITTEN_IMAGES:
        return {extension: data}
    return {"jpg": encode_image(smaller, "jpg", preparation.quality)}


def _already_whole(folder: Path, split: str, settings: dict[str, Any]) -> Prepared | None:
    """What an earlier run came to, if it finished with the same settings and its shards are as they were."""
    path = index_path(folder, split)
    if not path.is_file():
        return None
    index = read_index(folder, split)
    if index["settings"] != settings:
        return None
    ShardFolder(folder, split).verify()
    return Prepared(path, len(index["samples"]), len(index["shards"]), index["left_out"], index.get("reencoded", 0))


def _fingerprint(dataset: CocoFolder) -> str:
    """Changes with any image, caption or audio of the split, so that shards of other data are not kept."""
    files = []
    for path in dataset.files:
        size = path.stat().st_size if path.exists() else None
        files.append((path.name, size))
    content = [files, dataset.image_ids, dataset.captions, dataset.caption_ids, dataset.has_audio]
    text = json.dumps(content)
    return hashlib.sha256(text.encode()).hexdigest()
