"""Shards: webdataset tars in which one sample is one image with all its captions, read by position.

`<split>-000000.tar` … hold `<key>.jpg|png`, `<key>.json` ({"image_id", "captions", "caption_ids"}) and optionally
`<key>.wav|flac`. `<split>.index.json` says where each member lies, so that any order can be read with os.pread and
nothing is ever extracted. webdataset writes the tars, and webdataset.WebDataset reads them too.
"""

import itertools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import webdataset

from mm.batch import Sample
from mm.data.media import (
    AUDIO_EXTENSIONS,
    IMAGE_EXTENSIONS,
    SUSPICIOUSLY_SMALL,
    EncodedSample,
    audio_frames,
    decode_audio,
    decode_image,
    encode_sample,
)
from mm.data.shard_index import (
    index_path,
    join_records,
    read_index,
    scan_shard,
    scan_split,
    sha256,
    shard_files,
    shard_path,
    skipped_before,
    unfinished_path,
)
from mm.files import write_json

logger = logging.getLogger(__name__)
OPEN_SHARDS = 128
"""How many shards a reader holds open, well below the usual limit of 1,024 files."""
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


def write_shards(
    samples: Iterable[Sample | EncodedSample],
    folder: str | Path,
    split: str,
    samples_per_shard: int = 1000,
    image_format: str = "jpg",
    audio_format: str = "flac",
    quality: int = 90,
) -> Path:
    """Write a split from its samples in order; returns the path of its index. See `SplitWriter` for resumable work."""
    writer = SplitWriter(folder, split, settings=None)
    encoded = (encode_sample(sample, image_format, audio_format, quality) for sample in samples)
    for number in itertools.count():
        chunk = list(itertools.islice(encoded, samples_per_shard))
        if not chunk:
            return writer.close()
        writer.write(number, chunk)
    raise AssertionError("unreachable")


class SplitWriter:
    """Writes a split shard by shard and, last and atomically, its index.

    A shard that an earlier, interrupted writer finished with the same `settings` (any JSON value; None keeps nothing)
    and whose checksum still holds is found by `finished` and need not be written again. Until `close`, a marker file
    keeps readers from taking the unfinished split for a whole one.
    """

    def __init__(self, folder: str | Path, split: str, settings: Any) -> None:
        self.folder, self.split, self.settings = Path(folder), split, settings
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished_path(self.folder, split).touch()
        index_path(self.folder, split).unlink(missing_ok=True)
        self._records: dict[int, dict[str, Any]] = {}
        self._keys: set[str] = set()

    def finished(self, number: int) -> dict[str, Any] | None:
        """The record of a shard that need not be written again, or None."""
        path = shard_path(self.folder, self.split, number)
        note = path.with_suffix(".json")
        if self.settings is None or not (path.is_file() and note.is_file()):
            return None
        saved = json.loads(note.read_text())
        if saved["settings"] != json.loads(json.dumps(self.settings)) or saved["record"]["sha256"] != sha256(path):
            return None
        return self._take(number, saved["record"])

    def write(self, number: int, samples: Iterable[EncodedSample], skipped_lines: Iterable[str] = ()) -> dict[str, Any]:
        """Write one shard. `skipped_lines` names what could not go in; it is kept in the record for a resumed run."""
        path = shard_path(self.folder, self.split, number)
        _write_tar(samples, path)
        record = {**scan_shard(path), "left_out": list(skipped_lines)}
        write_json(path.with_suffix(".json"), {"settings": self.settings, "record": record}, indent=None)
        return self._take(number, record)

    def close(self) -> Path:
        """Write the index, drop the split's older shards that are not in it, and the notes kept for resuming."""
        records = [self._records[number] for number in sorted(self._records)]
        if not any(record["samples"] for record in records):
            raise ValueError(f"no samples to write for split {self.split!r} in {self.folder}")
        written = {self.folder / record["name"] for record in records}
        for path in shard_files(self.folder, self.split):
            path.with_suffix(".json").unlink(missing_ok=True)
            if path not in written:
                path.unlink()
        write_json(index_path(self.folder, self.split), join_records(records, self.settings), indent=None)
        unfinished_path(self.folder, self.split).unlink()
        return index_path(self.folder, self.split)

    def _take(self, number: int, record: dict[str, Any]) -> dict[str, Any]:
        for sample in record["samples"]:
            if sample["key"] in self._keys:
                raise ValueError(f"two samples of {self.split} have the key {sample['key']!r}; keys must be unique")
            self._keys.add(sample["key"])
        self._records[number] = record
        return record


def _write_tar(samples: Iterable[EncodedSample], path: Path) -> None:
    temporary = path.with_name(path.name + ".part")
    # A fixed modification time makes the same samples the same bytes, so that a checksum means something.
    with temporary.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as writer:
        for sample in samples:
            if not _KEY.fullmatch(sample.key):
                raise ValueError(f"sample key {sample.key!r} cannot name a tar member; use letters, digits, _ and -")
            if unknown := sample.members.keys() - {*IMAGE_EXTENSIONS, *AUDIO_EXTENSIONS}:
                raise ValueError(f"sample {sample.key} has a member of unknown kind {min(unknown)!r}")
            text = {"image_id": sample.image_id, "captions": sample.captions, "caption_ids": sample.caption_ids}
            writer.write({"__key__": sample.key, "json": json.dumps(text).encode(), **sample.members})
    temporary.replace(path)


class ShardFolder:
    """A split of shards as a CaptionDataset: position -> Sample, one pread per member.

    Opening checks each shard's size against the index; `verify()` checks the full checksums. Without an index the tars
    are scanned.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.split = Path(root), split
        self.name = f"{self.root.resolve().name}/{split}"
        index = self._open_index()
        self._shards: list[dict[str, Any]] = index["shards"]
        self._samples: list[dict[str, Any]] = index["samples"]
        self._files: dict[int, Any] = {}
        for shard in self._shards:
            self._check_size(shard)
        self.image_ids = [int(sample["image_id"]) for sample in self._samples]
        skipped = Counter(skipped_before(index))
        texts = [self._texts(sample, skipped) for sample in self._samples]
        self.captions = [tuple(caption for _, caption in pairs) for pairs in texts]
        self.caption_ids = [tuple(caption_id for caption_id, _ in pairs) for pairs in texts]
        self.has_audio = [self._audio_present(i, skipped) for i in range(len(self._samples))]
        self.skipped = dict(skipped)
        if self.skipped:
            logger.warning("%s: skipped %s", self.name, ", ".join(f"{n} × {what}" for what, n in self.skipped.items()))
        images = any(_member(sample, IMAGE_EXTENSIONS) for sample in self._samples)
        kinds = {"image": images, "audio": any(self.has_audio), "text": any(self.captions)}
        self.modalities = frozenset(kind for kind, there in kinds.items() if there)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        encoded = self.encoded(index)
        image, audio, rate = None, None, 0
        for extension, data in encoded.members.items():
            name = f"{encoded.key}.{extension} in {self._shard_of(index)['name']}"
            if extension in IMAGE_EXTENSIONS:
                image = decode_image(data, name)
            elif extension in AUDIO_EXTENSIONS and self.has_audio[index]:
                audio, rate = decode_audio(data, name)
        return Sample(encoded.key, encoded.image_id, encoded.captions, encoded.caption_ids, image, audio, rate)

    def encoded(self, index: int) -> EncodedSample:
        """The sample with its image and audio as file bytes."""
        sample = self._samples[index]
        members = {
            extension: self._read(sample["shard"], *place)
            for extension, place in sample["members"].items()
            if extension in IMAGE_EXTENSIONS + AUDIO_EXTENSIONS
        }
        return EncodedSample(
            sample["key"], self.image_ids[index], self.captions[index], self.caption_ids[index], members
        )

    def verify(self) -> None:
        """Compare every shard's sha256 with the index. ValueError names the first that differs."""
        for shard in self._shards:
            if sha256(self.root / shard["name"]) != shard["sha256"]:
                raise ValueError(f"shard {self.root / shard['name']} does not match its checksum; prepare it again")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def _open_index(self) -> dict[str, Any]:
        if index_path(self.root, self.split).is_file():
            return read_index(self.root, self.split)
        if unfinished_path(self.root, self.split).is_file():
            raise ValueError(f"writing the shards of {self.split!r} in {self.root} was interrupted; prepare them again")
        records = scan_split(self.root, self.split)
        if not records:
            raise FileNotFoundError(f"no shards {self.root / self.split}-*.tar")
        logger.warning("%s: no index, read the shards' own member tables instead", self.name)
        return join_records(records, None)

    def _check_size(self, shard: dict[str, Any]) -> None:
        path = self.root / _safe_name(shard["name"])
        if not path.is_file():
            raise FileNotFoundError(f"shard {path} is in the index but not on disk")
        if path.stat().st_size != shard["size"]:
            raise ValueError(
                f"shard {path} is truncated or changed: {path.stat().st_size} bytes, "
                f"the index says {shard['size']}; prepare it again"
            )

    @staticmethod
    def _texts(sample: dict[str, Any], skipped: Counter[str]) -> list[tuple[int, str]]:
        pairs = list(zip(sample["caption_ids"], sample["captions"], strict=True))
        kept = [(caption_id, caption) for caption_id, caption in pairs if caption.strip()]
        if len(kept) < len(pairs):
            skipped["empty caption"] += len(pairs) - len(kept)
        return kept

    def _audio_present(self, index: int, skipped: Counter[str]) -> bool:
        sample = self._samples[index]
        extension = _member(sample, AUDIO_EXTENSIONS)
        if extension is None:
            return False
        place = sample["members"][extension]
        if place[1] >= SUSPICIOUSLY_SMALL or audio_frames(self._read(sample["shard"], *place), sample["key"]):
            return True
        skipped["zero-length audio"] += 1
        return False

    def _shard_of(self, index: int) -> dict[str, Any]:
        return self._shards[self._samples[index]["shard"]]

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        if len(self._files) >= OPEN_SHARDS and shard not in self._files:
            self._files.pop(next(iter(self._files))).close()
        if shard not in self._files:
            self._files[shard] = (self.root / self._shards[shard]["name"]).open("rb", buffering=0)
        data = os.pread(self._files[shard].fileno(), size, offset)
        if len(data) != size:
            raise ValueError(f"shard {self.root / self._shards[shard]['name']} is truncated: it ends inside a member")
        return data


def _member(sample: dict[str, Any], extensions: Iterable[str]) -> str | None:
    return next((extension for extension in extensions if extension in sample["members"]), None)


def _safe_name(name: str) -> str:
    if name != Path(name).name or name in ("", ".", ".."):
        raise ValueError(f"shard name {name!r} in the index is not a plain file name")
    return name
