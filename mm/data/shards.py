"""Shards: webdataset tars in which one sample is one image with all its captions, read by position.

`<split>-000000.tar` … hold `<key>.jpg`, `<key>.json` ({"image_id", "captions", "caption_ids"}) and optionally
`<key>.flac`, or images and audio of the other kinds that `media` reads. `<split>.index.json` says where each member
lies, so that any order can be read with os.pread and nothing is ever extracted. `shard_writer` writes the tars with
webdataset, and webdataset.WebDataset reads them too.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from kernels.errors import MissingError, UserError
from mm.batch import Sample
from mm.data.dataset import files_stamp, noted
from mm.data.media import (
    AUDIO_EXTENSIONS,
    IMAGE_EXTENSIONS,
    EncodedSample,
    Member,
    decode_sample,
    has_samples,
    member_modality,
)
from mm.data.shard_index import (
    Index,
    SampleEntry,
    ShardEntry,
    index_path,
    join_records,
    read_index,
    scan_split,
    skipped_before,
    unfinished_path,
)
from mm.data.skipped import Unreadable, warn_of_skipped
from mm.files import sha256

logger = logging.getLogger(__name__)
READ_MEMBERS = {*IMAGE_EXTENSIONS, *AUDIO_EXTENSIONS, "json"}
"""Extensions of the members that mean something."""
OPEN_SHARDS = 128
"""How many shards a reader holds open, well below the usual limit of 1,024 files."""


class ShardFolder:
    """A split of shards as a CaptionDataset: position -> Sample, one pread per member.

    Opening checks each shard's size against the index; `verify()` checks the full checksums. Without an index the tars
    are scanned. Empty captions and audio clips without samples are skipped, counted in `skipped` and reported in one
    log line, together with what could not go into the shards.

    Args:
        root: the folder.
        split: what its tars begin with.

    Raises:
        FileNotFoundError: there are no shards, or one of the index is not there.
        ValueError: a shard is truncated, the index is broken, or the writing was interrupted.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root = Path(root)
        self.split = split
        self.name = f"{self.root.resolve().name}/{split}"
        index = self._open_index()
        self._shards: list[ShardEntry] = index["shards"]
        self._samples: list[SampleEntry] = index["samples"]
        self._files: dict[int, BinaryIO] = {}
        for shard in self._shards:
            self._check_size(shard)
        skipped = Counter(skipped_before(index))
        self.skipped: dict[str, int] = skipped
        self.unreadable = Unreadable(self.name, skipped)
        self.image_ids = [sample["image_id"] for sample in self._samples]
        self.captions: list[tuple[str, ...]] = []
        self.caption_ids: list[tuple[int, ...]] = []
        self.has_image = [_member(sample, IMAGE_EXTENSIONS) is not None for sample in self._samples]
        self.has_audio: list[bool] = []
        self._collect(skipped)
        self.modalities = self._modalities()
        warn_of_skipped(self.name, self.skipped)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self._samples[index]
        shard = self._shards[sample["shard"]]["name"]
        members = []
        for extension in self._extensions(index):
            name = f"{sample['key']}.{extension} in {shard}"
            read = partial(self._read, sample["shard"], *sample["members"][extension])
            members.append(Member(name, member_modality(extension), read))
        return noted(self, index, decode_sample(self._stated(index), members, self.unreadable))

    def encoded(self, index: int) -> EncodedSample:
        """The sample with its image and audio as file bytes."""
        sample = self._samples[index]
        members = {}
        for extension in self._extensions(index):
            members[extension] = self._read(sample["shard"], *sample["members"][extension])
        return replace(self._stated(index), members=members)

    def _extensions(self, index: int) -> list[str]:
        """Those of a sample's image and of its audio, where it has them."""
        sample = self._samples[index]
        found = []
        if self.has_image[index]:
            found.append(_member(sample, IMAGE_EXTENSIONS))
        if self.has_audio[index]:
            found.append(_member(sample, AUDIO_EXTENSIONS))
        return [extension for extension in found if extension is not None]

    def _stated(self, index: int) -> EncodedSample:
        """The sample without its files."""
        return EncodedSample(
            key=self._samples[index]["key"],
            image_id=self.image_ids[index],
            captions=self.captions[index],
            caption_ids=self.caption_ids[index],
        )

    def verify(self) -> None:
        """Compare every shard's sha256 with the index. ValueError names the first that differs."""
        for shard in self._shards:
            path = self.root / shard["name"]
            if sha256(path) != shard["sha256"]:
                raise UserError(f"shard {path} does not match its checksum; prepare it again")

    def stamp(self, source: str) -> str:
        """What the shards hold, by size and time of change, and where in them images or audio clips lie, see
        `StampedDataset`.
        """
        extensions = AUDIO_EXTENSIONS if source == "audio" else IMAGE_EXTENSIONS
        places: list[object] = []
        for sample in self._samples:
            extension = _member(sample, extensions)
            member = sample["members"][extension] if extension else None
            places.append((sample["shard"], member))
        shards = [self._path(number) for number in range(len(self._shards))]
        return files_stamp(shards, places)

    def size(self, source: str, index: int) -> int:
        """Of the image's or the audio's member, in bytes."""
        _, size = self._place(source, index)
        return size

    def content(self, source: str, index: int) -> bytes:
        """The bytes of the image's or the audio's member."""
        return self._read(self._samples[index]["shard"], *self._place(source, index))

    def _place(self, source: str, index: int) -> list[int]:
        """[offset, size] of a sample's image or audio, which it has."""
        sample = self._samples[index]
        extension = _member(sample, AUDIO_EXTENSIONS if source == "audio" else IMAGE_EXTENSIONS)
        assert extension is not None
        return sample["members"][extension]

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files, so that a worker process opens its own."""
        return {**self.__dict__, "_files": {}}

    def _open_index(self) -> Index:
        if index_path(self.root, self.split).is_file():
            return read_index(self.root, self.split)
        if unfinished_path(self.root, self.split).is_file():
            raise UserError(f"writing the shards of {self.split!r} in {self.root} was interrupted; prepare them again")
        records = scan_split(self.root, self.split)
        if not records:
            raise MissingError(f"no shards {self.root / self.split}-*.tar")
        logger.warning("%s: no index, read the shards' own member tables instead", self.name)
        return join_records(records, None)

    def _check_size(self, shard: ShardEntry) -> None:
        path = self.root / _safe_name(shard["name"])
        if not path.is_file():
            raise MissingError(f"shard {path} is in the index but not on disk")
        size = path.stat().st_size
        if size != shard["size"]:
            raise UserError(
                f"shard {path} is truncated or changed: {size} bytes, the index says {shard['size']}; prepare it again"
            )

    def _collect(self, skipped: Counter[str]) -> None:
        """Read off the index which captions and audio clips can be used."""
        for sample in self._samples:
            captions = []
            caption_ids = []
            for caption_id, caption in zip(sample["caption_ids"], sample["captions"], strict=True):
                if caption.strip():
                    captions.append(caption)
                    caption_ids.append(caption_id)
                else:
                    skipped["empty caption"] += 1
            self.captions.append(tuple(captions))
            self.caption_ids.append(tuple(caption_ids))
        for sample in self._samples:
            self.has_audio.append(self._usable_audio(sample, skipped))
            for extension in sample["members"].keys() - READ_MEMBERS:
                skipped[f"member of a kind that is not read (.{extension})"] += 1

    def _modalities(self) -> frozenset[str]:
        present = set()
        if any(self.has_image):
            present.add("image")
        if any(self.has_audio):
            present.add("audio")
        if any(self.captions):
            present.add("text")
        return frozenset(present)

    def _usable_audio(self, sample: SampleEntry, skipped: Counter[str]) -> bool:
        extension = _member(sample, AUDIO_EXTENSIONS)
        if extension is None:
            return False
        shard = sample["shard"]
        offset, size = sample["members"][extension]
        name = f"{sample['key']}.{extension} in {self._shards[shard]['name']}"
        held = self.unreadable.attempt(
            "audio", name, lambda: has_samples(size, lambda: self._read(shard, offset, size), name)
        )
        if held is False:
            skipped["zero-length audio"] += 1
        return bool(held)

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        """The bytes of one member. Of the open shards, the one opened first makes room for another."""
        if shard not in self._files:
            if len(self._files) >= OPEN_SHARDS:
                oldest = next(iter(self._files))
                self._files.pop(oldest).close()
            self._files[shard] = self._path(shard).open("rb", buffering=0)
        data = os.pread(self._files[shard].fileno(), size, offset)
        if len(data) != size:
            raise UserError(f"shard {self._path(shard)} is truncated: it ends inside a member")
        return data

    def _path(self, shard: int) -> Path:
        return self.root / self._shards[shard]["name"]


def _member(sample: SampleEntry, extensions: Iterable[str]) -> str | None:
    """The first of these extensions that the sample has."""
    for extension in extensions:
        if extension in sample["members"]:
            return extension
    return None


def _safe_name(name: str) -> str:
    if name != Path(name).name or name in ("", ".", ".."):
        raise UserError(f"shard name {name!r} in the index is not a plain file name")
    return name
