"""Where everything lies inside a split's tars: `<split>.index.json`, written last, rebuilt by scanning if it is gone.

The index holds each shard's name, size and sha256, and per sample its key, image id, captions, caption ids and, for
each member, (offset, size).
"""

import hashlib
import json
import re
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

INDEX_VERSION = 1


def shard_path(folder: str | Path, split: str, number: int) -> Path:
    return Path(folder) / f"{split}-{number:06d}.tar"


def index_path(folder: str | Path, split: str) -> Path:
    return Path(folder) / f"{split}.index.json"


def has_shards(folder: str | Path, split: str) -> bool:
    """Whether a split lies there as shards, whole or unfinished."""
    marks = (index_path(folder, split), unfinished_path(folder, split))
    return any(path.is_file() for path in marks) or bool(shard_files(Path(folder), split))


def unfinished_path(folder: str | Path, split: str) -> Path:
    """The marker that stands beside shards while they are being written."""
    return Path(folder) / f"{split}.unfinished"


def join_records(records: list[dict[str, Any]], settings: Any) -> dict[str, Any]:
    """Shard records -> the content of the index."""
    shards = [{key: record[key] for key in ("name", "size", "sha256")} for record in records]
    samples = [{**sample, "shard": number} for number, record in enumerate(records) for sample in record["samples"]]
    skipped_lines = [line for record in records for line in record.get("left_out", [])]
    return {
        "version": INDEX_VERSION,
        "settings": settings,
        "left_out": skipped_lines,
        "shards": shards,
        "samples": samples,
    }


def read_index(folder: str | Path, split: str) -> dict[str, Any]:
    """The content of the index. ValueError if it is not JSON, of another version or without its lists."""
    path = index_path(folder, split)
    try:
        index = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"shard index {path} is not JSON ({error}); delete it to have it rebuilt") from error
    version = index.get("version") if isinstance(index, dict) else None
    if version != INDEX_VERSION:
        raise ValueError(
            f"shard index {path} has version {version}, this program reads {INDEX_VERSION}; "
            "delete it to have it rebuilt"
        )
    if absent := {"shards", "samples"} - index.keys():
        raise ValueError(f"shard index {path} has no {', '.join(sorted(absent))}; delete it to have it rebuilt")
    return index


def skipped_before(index: dict[str, Any]) -> dict[str, int]:
    """What could not go into the shards when they were made, counted by reason."""
    settings, files = index.get("settings"), len(index.get("left_out", ()))
    counts = dict(settings.get("skipped", {})) if isinstance(settings, dict) else {}
    return counts | ({"unreadable file": files} if files else {})


def scan_shard(path: Path) -> dict[str, Any]:
    """Read a tar's member table and captions. ValueError names a tar that is truncated or has unsafe members."""
    samples: dict[str, dict[str, Any]] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file) as tar:
            for member in tar:
                key, extension = _split_name(member, path)
                sample = samples.setdefault(key, {"key": key, "members": {}})
                sample["members"][extension] = [member.offset_data, member.size]
                if extension == "json":
                    file.seek(member.offset_data)
                    sample.update(_read_text(file.read(member.size)))
            _require_end(file, path)
    except (tarfile.TarError, json.JSONDecodeError, KeyError, TypeError, EOFError) as error:
        raise ValueError(f"shard {path} is truncated or not a caption shard: {error}") from error
    for sample in samples.values():
        if "captions" not in sample:
            raise ValueError(f"shard {path}: sample {sample['key']} has no .json member with its captions")
    return {"name": path.name, "size": path.stat().st_size, "sha256": sha256(path), "samples": list(samples.values())}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def scan_split(folder: str | Path, split: str) -> list[dict[str, Any]]:
    """The records of every shard of a split, read from the tars themselves."""
    return [scan_shard(path) for path in shard_files(Path(folder), split)]


def shard_files(folder: Path, split: str) -> list[Path]:
    pattern = re.compile(re.escape(split) + r"-\d{6}\.tar")
    return sorted(path for path in folder.glob("*.tar") if pattern.fullmatch(path.name))


def _read_text(data: bytes) -> dict[str, Any]:
    text = json.loads(data)
    captions, caption_ids = [str(c) for c in text["captions"]], [int(i) for i in text["caption_ids"]]
    if len(captions) != len(caption_ids):
        raise TypeError(f"{len(captions)} captions but {len(caption_ids)} caption ids for image {text['image_id']}")
    return {"image_id": int(text["image_id"]), "captions": captions, "caption_ids": caption_ids}


def _split_name(member: tarfile.TarInfo, path: Path) -> tuple[str, str]:
    """(key, extension) as webdataset cuts them: the extension starts at the first dot of the last path component."""
    name = PurePosixPath(member.name)
    if not member.isreg() or name.is_absolute() or ".." in name.parts or "." not in name.name.lstrip("."):
        raise ValueError(f"shard {path} holds {member.name!r}, which is not a plain `key.extension` member")
    stem, _, extension = name.name.partition(".")
    return str(name.parent / stem), extension.lower()


def _require_end(file: Any, path: Path) -> None:
    # A tar cut exactly between two members reads without an error; only its closing zero blocks tell.
    file.seek(max(0, path.stat().st_size - 1024))
    if file.read().strip(b"\0"):
        raise ValueError(f"shard {path} is truncated: its end-of-archive blocks are missing")
