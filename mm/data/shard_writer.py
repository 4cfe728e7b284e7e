"""Writes shards with webdataset, tar by tar, so that an interrupted run goes on where it stopped."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import webdataset

from kernels.errors import UserError
from kernels.parsing import parse_json
from mm.batch import Sample
from mm.data.media import AUDIO_EXTENSIONS, IMAGE_EXTENSIONS, KEY, EncodedSample, encode_sample
from mm.data.shard_index import (
    ShardRecord,
    index_path,
    join_records,
    scan_shard,
    shard_files,
    shard_path,
    unfinished_path,
    write_index,
)
from mm.files import sha256, write_json


def write_shards(
    samples: Iterable[Sample | EncodedSample],
    folder: str | Path,
    split: str,
    samples_per_shard: int = 1000,
    image_format: str = "jpg",
    audio_format: str = "flac",
    quality: int = 90,
) -> Path:
    """Write a split from its samples in order; returns the path of its index. See `SplitWriter` for resumable work.

    Raises ValueError for no samples, for a key that occurs twice or cannot name a member, and for a member that is
    neither an image nor audio.
    """
    writer = SplitWriter(folder, split, settings=None)
    encoded = (encode_sample(sample, image_format, audio_format, quality) for sample in samples)
    number = 0
    while chunk := list(islice(encoded, samples_per_shard)):
        writer.write(number, chunk)
        number += 1
    return writer.close()


class SplitWriter:
    """Writes a split shard by shard and, last and atomically, its index.

    A shard that an earlier, interrupted writer finished with the same `settings` (any JSON value; None keeps nothing)
    and whose checksum still holds is found by `finished` and need not be written again. Until `close`, a marker file
    keeps readers from taking the unfinished split for a whole one.

    Args:
        folder: where to write; it is made if need be.
        split: what its tars begin with.
        settings: what the shards are made with and of.
    """

    def __init__(self, folder: str | Path, split: str, settings: Any) -> None:
        self.folder = Path(folder)
        self.split = split
        self.settings = settings
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished_path(self.folder, split).touch()
        index_path(self.folder, split).unlink(missing_ok=True)
        self._records: dict[int, ShardRecord] = {}
        self._keys: set[str] = set()

    def finished(self, number: int) -> ShardRecord | None:
        """The record of a shard that need not be written again, or None."""
        path = shard_path(self.folder, self.split, number)
        note = path.with_suffix(".json")
        if self.settings is None or not (path.is_file() and note.is_file()):
            return None
        saved = parse_json(note.read_bytes(), f"the note {note}")
        settings = json.loads(json.dumps(self.settings))
        if saved["settings"] != settings:
            return None
        record = saved["record"]
        if record["sha256"] != sha256(path):
            return None
        return self._take(number, record)

    def write(
        self, number: int, samples: Iterable[EncodedSample], skipped: Iterable[str] = (), reencoded: int = 0
    ) -> ShardRecord:
        """Write one shard. `skipped` names what could not go in, `reencoded` counts images that are not the bytes of
        their file; both are kept in the record for a resumed run, and in the index.
        """
        path = shard_path(self.folder, self.split, number)
        _write_tar(samples, path)
        record = scan_shard(path)
        record["left_out"] = list(skipped)
        if reencoded:
            record["reencoded"] = reencoded
        note = {"settings": self.settings, "record": record}
        write_json(path.with_suffix(".json"), note, indent=None)
        return self._take(number, record)

    def close(self) -> Path:
        """Write the index, drop the split's older shards that are not in it, and the notes kept for resuming.

        Returns the index's path. Raises ValueError if no sample was written.
        """
        records = [self._records[number] for number in sorted(self._records)]
        if not any(record["samples"] for record in records):
            raise UserError(f"no samples to write for split {self.split!r} in {self.folder}")
        written = {self.folder / record["name"] for record in records}
        for path in shard_files(self.folder, self.split):
            path.with_suffix(".json").unlink(missing_ok=True)
            if path not in written:
                path.unlink()
        index = index_path(self.folder, self.split)
        write_index(index, join_records(records, self.settings))
        unfinished_path(self.folder, self.split).unlink()
        return index

    def _take(self, number: int, record: ShardRecord) -> ShardRecord:
        for sample in record["samples"]:
            key = sample["key"]
            if key in self._keys:
                raise UserError(f"two samples of {self.split} have the key {key!r}; keys must be unique")
            self._keys.add(key)
        self._records[number] = record
        return record


def _write_tar(samples: Iterable[EncodedSample], path: Path) -> None:
    temporary = path.with_name(path.name + ".part")
    # A fixed modification time makes the same samples the same bytes, so that a checksum means something.
    with temporary.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as writer:
        for sample in samples:
            writer.write(_members(sample))
    temporary.replace(path)


def _members(sample: EncodedSample) -> dict[str, Any]:
    """A sample as webdataset takes it. Raises ValueError for what a reader would not find again."""
    if not KEY.fullmatch(sample.key):
        raise UserError(f"sample key {sample.key!r} cannot name a tar member; use letters, digits, _ and -")
    unknown = sample.members.keys() - {*IMAGE_EXTENSIONS, *AUDIO_EXTENSIONS}
    if unknown:
        raise ValueError(f"sample {sample.key} has a member of unknown kind {min(unknown)!r}")
    text = {"image_id": sample.image_id, "captions": sample.captions, "caption_ids": sample.caption_ids}
    return {"__key__": sample.key, "json": json.dumps(text).encode(), **sample.members}
