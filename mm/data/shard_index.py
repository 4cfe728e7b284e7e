"""Where everything lies inside a split's tars: `<split>.index.json`, written last, rebuilt by scanning if it is gone.

The index holds each shard's name, size and sha256, and per sample its key, image id, captions, caption ids and, for
each member, (offset, size).
"""

import hashlib
import json
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NotRequired, TypedDict

from kernels.errors import UserError
from kernels.parsing import parse_json
from mm.data.fields import caption_text, whole_id
from mm.files import sha256, write_json

INDEX_VERSION = 1
Members = dict[str, list[int]]
"""Extension -> [offset, size] in bytes."""


class SampleText(TypedDict):
    """What a sample's `.json` member holds."""

    image_id: int
    captions: list[str]
    caption_ids: list[int]


class SampleEntry(SampleText):
    """A sample, and where it lies in its shard."""

    key: str
    members: Members
    shard: NotRequired[int]
    """Its shard's position in the index."""


class ShardEntry(TypedDict):
    """A tar."""

    name: str
    """Its file name."""
    size: int
    """In bytes."""
    sha256: str
    """Its checksum, in hexadecimal."""


class ShardRecord(ShardEntry):
    """A tar and what it holds."""

    samples: list[SampleEntry]
    left_out: NotRequired[list[str]]
    """A line for each thing that was skipped; the key is that of the files of earlier versions."""
    skipped: NotRequired[dict[str, int]]
    """Members of the tar that belong to no sample, counted by reason."""
    reencoded: NotRequired[int]
    """Images that were reduced or encoded anew when the tar was written."""


class Index(TypedDict):
    """The content of an index."""

    version: int
    settings: Any
    """What the shards were made with and of; any JSON value."""
    left_out: list[str]
    """A line for each thing that was skipped; the key is that of the files of earlier versions."""
    shards: list[ShardEntry]
    samples: list[SampleEntry]
    skipped: NotRequired[dict[str, int]]
    """Members of the tars that belong to no sample, counted by reason."""
    reencoded: NotRequired[int]
    """Images that were reduced or encoded anew when the tars were written; how, the settings say."""
    digest: NotRequired[str]
    """Of the index itself, see `digest_of`; none in those of earlier versions."""


def shard_path(folder: Path, split: str, number: int) -> Path:
    """Where a shard of a split lies; the first is number 0."""
    return folder / f"{split}-{number:06d}.tar"


def index_path(folder: Path, split: str) -> Path:
    """Where the index of a split lies."""
    return folder / f"{split}.index.json"


def unfinished_path(folder: Path, split: str) -> Path:
    """The marker that stands beside shards while they are being written."""
    return folder / f"{split}.unfinished"


def has_shards(folder: Path, split: str) -> bool:
    """Whether a split lies there as shards, whole or unfinished."""
    for mark in (index_path(folder, split), unfinished_path(folder, split)):
        if mark.is_file():
            return True
    return bool(shard_files(folder, split))


def join_records(records: list[ShardRecord], settings: Any) -> Index:
    """Shard records -> the content of the index."""
    index = Index(version=INDEX_VERSION, settings=settings, left_out=[], shards=[], samples=[])
    skipped: Counter[str] = Counter()
    for number, record in enumerate(records):
        skipped.update(record.get("skipped", {}))
        index["left_out"] += record.get("left_out", [])
        shard = ShardEntry(name=record["name"], size=record["size"], sha256=record["sha256"])
        index["shards"].append(shard)
        for sample in record["samples"]:
            index["samples"].append({**sample, "shard": number})
    if skipped:
        index["skipped"] = dict(skipped)
    reencoded = sum(record.get("reencoded", 0) for record in records)
    if reencoded:
        index["reencoded"] = reencoded
    return index


def write_index(path: Path, index: Index) -> None:
    """Write an index with its digest."""
    index["digest"] = digest_of(index)
    write_json(path, index, indent=None)


def digest_of(index: Index) -> str:
    """A sha256, in hexadecimal, of everything in an index but its digest."""
    content = {name: value for name, value in index.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_index(folder: Path, split: str) -> Index:
    """The content of the index.

    Raises ValueError, naming the remedy, if it is not JSON, of another version, without its lists or not as it was
    written, if an id or a caption in it is none, and if a member lies outside of its shard.
    """
    path = index_path(folder, split)
    remedy = "delete it to have it rebuilt"
    try:
        index = parse_json(path.read_bytes(), f"shard index {path}")
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error
    version = index.get("version") if isinstance(index, dict) else None
    if version != INDEX_VERSION:
        raise UserError(f"shard index {path} has version {version}, this program reads {INDEX_VERSION}; {remedy}")
    absent = sorted({"shards", "samples"} - index.keys())
    if absent:
        raise UserError(f"shard index {path} has no {', '.join(absent)}; {remedy}")
    if index.get("digest", digest_of(index)) != digest_of(index):
        raise UserError(f"shard index {path} is not as it was written; {remedy}")
    try:
        sizes = [_shard_size(shard) for shard in index["shards"]]
        for sample in index["samples"]:
            _check_places(sample, sizes)
            sample |= sample_text(sample, f"shard index {path}: sample {sample['key']}")
        skipped_before(index)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"shard index {path} lists what is no sample ({error}); {remedy}") from error
    return index


def _shard_size(shard: ShardEntry) -> int:
    """In bytes. Raises TypeError where an index has something else than a tar."""
    if not (isinstance(shard["name"], str) and isinstance(shard["sha256"], str) and type(shard["size"]) is int):
        raise TypeError(f"no shard: {repr(shard)[:80]}")
    return shard["size"]


def _check_places(sample: SampleEntry, sizes: Sequence[int]) -> None:
    """Raises TypeError, KeyError or IndexError where a sample does not say which bytes of which shard are its members.

    Args:
        sample: of an index.
        sizes: of the shards, in bytes.
    """
    number = sample["shard"]
    if not isinstance(sample["key"], str) or type(number) is not int or number < 0:
        raise TypeError(f"no key or no shard: {repr(sample)[:80]}")
    for extension, place in sample["members"].items():
        offset, size = place if type(place) is list and len(place) == 2 else (None, None)
        if type(offset) is not int or type(size) is not int or not 0 <= offset <= offset + size <= sizes[number]:
            raise TypeError(f"{sample['key']}.{extension} lies at {repr(place)[:40]}")


def skipped_before(index: Index) -> dict[str, int]:
    """What could not go into the shards when they were made, counted by reason."""
    counts: dict[str, int] = {}
    settings = index.get("settings")
    if isinstance(settings, dict):
        counts |= settings.get("skipped", {})
    counts |= index.get("skipped", {})
    unreadable = index.get("left_out", [])
    if unreadable:
        counts["unreadable file"] = len(unreadable)
    return counts


def scan_split(folder: Path, split: str) -> list[ShardRecord]:
    """The records of every shard of a split, read from the tars themselves."""
    return [scan_shard(path) for path in shard_files(folder, split)]


def scan_shard(path: Path) -> ShardRecord:
    """Read a tar's member table and captions.

    Raises ValueError, naming the tar, if it is truncated, has unsafe members, or holds no captions.
    """
    places: dict[str, Members] = {}
    texts: dict[str, SampleText] = {}
    skipped: Counter[str] = Counter()
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file) as tar:
            for member in tar:
                key, extension, reason = _split_name(member, path)
                if reason:
                    skipped[reason] += 1
                    continue
                members = places.setdefault(key, {})
                if extension in members:
                    raise UserError(f"shard {path} holds {member.name!r} twice; write it again without the repetition")
                members[extension] = [member.offset_data, member.size]
                if extension == "json":
                    file.seek(member.offset_data)
                    content = parse_json(file.read(member.size), f"shard {path}: {member.name}")
                    _refuse_img2dataset(content, path)
                    texts[key] = sample_text(content, f"shard {path}: sample {key}")
            _require_end(file, tar.offset, path)
    except (tarfile.TarError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"shard {path} is truncated or not a caption shard: {error}") from error
    size = path.stat().st_size
    record = ShardRecord(name=path.name, size=size, sha256=sha256(path), samples=[])
    if skipped:
        record["skipped"] = dict(skipped)
    for key, members in places.items():
        if key not in texts:
            raise UserError(f"shard {path}: sample {key} has no .json member with its captions")
        sample = SampleEntry(key=key, members=members, **texts[key])
        record["samples"].append(sample)
    return record


def shard_files(folder: Path, split: str) -> list[Path]:
    """The tars of a split, in order."""
    pattern = re.compile(re.escape(split) + r"-\d{6}\.tar")
    files = [path for path in folder.glob("*.tar") if pattern.fullmatch(path.name)]
    return sorted(files)


def img2dataset_shards(folder: Path) -> list[Path]:
    """Tars that are named as img2dataset names them: by a number alone."""
    return sorted(path for path in folder.glob("*.tar") if path.stem.isdecimal())


def foreign_shard(path: Path) -> str:
    """Why a shard of img2dataset is not read, and what can be done."""
    return (
        f"shard {path} is of img2dataset, which keeps one caption a sample and no ids: group its samples by their url"
        " and write them with mm.data.shard_writer.write_shards, an image with all its captions in one sample"
    )


def _refuse_img2dataset(content: Any, path: Path) -> None:
    """Raise ValueError if a `.json` member says what img2dataset says of a sample."""
    if isinstance(content, dict) and "captions" not in content and {"caption", "key"} <= content.keys():
        raise UserError(foreign_shard(path))


def sample_text(content: Any, where: str) -> SampleText:
    """The ids and captions of a `.json` member, or of a sample in an index.

    Args:
        content: what JSON made of it.
        where: what has it, named in the message.

    Raises:
        TypeError, KeyError: it is of another kind.
        ValueError: an id or a caption is none.
    """
    try:
        image_id = whole_id(content["image_id"], "image")
        caption_ids = [whole_id(caption_id, "caption") for caption_id in content["caption_ids"]]
        if len(content["captions"]) != len(caption_ids):
            raise UserError(
                f"{len(content['captions'])} captions but {len(caption_ids)} caption ids for image {image_id}"
            )
        pairs = zip(content["captions"], caption_ids, strict=True)
        captions = [caption_text(caption, caption_id) for caption, caption_id in pairs]
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    return {"image_id": image_id, "captions": captions, "caption_ids": caption_ids}


def _split_name(member: tarfile.TarInfo, path: Path) -> tuple[str, str, str]:
    """(key, extension, "") as webdataset cuts them: the extension starts at the first dot of the last path component,
    and the key is everything before it.

    What belongs to no sample is ("", "", reason): directories, which plain `tar c folder` writes, names that begin with
    a dot, such as macOS' `._` files, names without an extension, and webdataset's own `__…__`.

    Raises ValueError for a link and for a name that leads out of the tar.
    """
    name = PurePosixPath(member.name)
    if member.isdir():
        return "", "", "directory in a shard"
    if name.is_absolute() or ".." in name.parts or not member.isreg():
        raise UserError(f"shard {path} holds {member.name!r}, which is not a plain `key.extension` member")
    if name.name.startswith("."):
        return "", "", "dot file in a shard"
    cut = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name, re.DOTALL)
    if cut is None or re.match(r"__[^/]*__($|/)", member.name):
        return "", "", "member of a shard without a key and an extension"
    return cut.group(1), cut.group(2).lower(), ""


def _require_end(file: BinaryIO, offset: int, path: Path) -> None:
    """Raise ValueError for a tar that does not close with zero blocks where its members end.

    One that is cut exactly between two members reads without an error, and so does one with a header that is damaged:
    tarfile takes it for the end. Only those blocks tell.

    Args:
        file: of the tar.
        offset: where its last member ends.
        path: which the error names.
    """
    file.seek(offset)
    closing = file.read()
    if len(closing) < 1024:
        raise UserError(f"shard {path} is truncated: its end-of-archive blocks are missing")
    if closing.strip(b"\0"):
        raise UserError(f"shard {path} is truncated or damaged: what stands at byte {offset:,} is no member")
