"""The COCO caption layout on disk: `annotations/captions_<split>.json`, images, optionally `audio/<stem>.flac`.

Serves any folder in that layout, the official COCO 2014 and 2017 downloads (Lin et al. 2014, arXiv:1405.0312), and the
Karpathy splits over them (Karpathy & Fei-Fei 2015, arXiv:1412.2306).
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kernels.errors import MissingError, UserError
from mm.batch import Sample
from mm.data.annotations import AnnotatedImage, ImageFinder, find_annotations, read_annotations, read_karpathy
from mm.data.dataset import files_stamp, noted
from mm.data.media import (
    AUDIO_EXTENSIONS,
    IMAGE_EXTENSIONS,
    KEY,
    EncodedSample,
    Member,
    decode_sample,
    encode_sample,
    has_samples,
)
from mm.data.skipped import Unreadable, counts_line, warn_of_skipped
from mm.files import write_json


class CocoFolder:
    """A split in COCO caption layout as a CaptionDataset: position -> Sample.

    What cannot be used is skipped at opening, counted in `skipped` and reported in one log line: images that are not
    on disk, images without captions, empty captions, annotations of unknown images, audio clips without samples.
    `missing` lists the file names that are not on disk, `files` the images that are, by position. A file that does
    not decode when it is read is an absence, and counted then.

    Args:
        root: the folder.
        split: `<split>` of `captions_<split>.json`, or with the official files also plain "train" and "val";
            with `karpathy` one of train, restval, val, test or several joined by "+".
        karpathy: the official `dataset_coco.json`.
        audio_root: where `audio/` lies, if not in `root`.

    Raises:
        FileNotFoundError: the folder or its annotation file is not there.
        ValueError: the annotation file cannot be read, leaves the folder, or names no image that can be used.
    """

    def __init__(
        self, root: str | Path, split: str, *, karpathy: str | Path | None = None, audio_root: str | Path | None = None
    ) -> None:
        self.root = Path(root)
        self.split = split
        if not self.root.is_dir():
            raise MissingError(f"data folder {self.root} does not exist")
        self.name = f"{self.root.resolve().name}/{split}"
        skipped: Counter[str] = Counter()
        self.skipped: dict[str, int] = skipped
        self.unreadable = Unreadable(self.name, skipped)
        if karpathy is None:
            source = find_annotations(self.root, split)
            images = read_annotations(source, skipped)
        else:
            source = Path(karpathy)
            images = read_karpathy(source, split)
        self.missing: list[str] = []
        self.files: list[Path] = []
        self.image_ids: list[int] = []
        self.captions: list[tuple[str, ...]] = []
        self.caption_ids: list[tuple[int, ...]] = []
        self._collect(images, ImageFinder(self.root, split, source), skipped)
        if not self.files:
            raise UserError(self._nothing_usable(source, skipped))
        self.keys = _unique_keys(self.files, self.image_ids)
        audio_folder = Path(audio_root or self.root) / "audio"
        self._audio = self._audio_files(audio_folder, skipped)
        self.has_image = [True] * len(self.files)
        self.has_audio = [path is not None for path in self._audio]
        self.modalities = frozenset({"image", "text"})
        if any(self.has_audio):
            self.modalities |= {"audio"}
        warn_of_skipped(self.name, self.skipped)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        members = []
        for path in self._paths(index):
            modality = "image" if path is self.files[index] else "audio"
            members.append(Member(str(path), modality, path.read_bytes))
        return noted(self, index, decode_sample(self._stated(index), members, self.unreadable))

    def encoded(self, index: int) -> EncodedSample:
        """The sample with its image and audio as the bytes of their files."""
        members = {_extension(path): path.read_bytes() for path in self._paths(index)}
        return replace(self._stated(index), members=members)

    def _stated(self, index: int) -> EncodedSample:
        """The sample without its files."""
        return EncodedSample(
            key=self.keys[index],
            image_id=self.image_ids[index],
            captions=self.captions[index],
            caption_ids=self.caption_ids[index],
        )

    def stamp(self, source: str) -> str:
        """What the images or audio clips hold, by size and time of change, see `StampedDataset`."""
        return files_stamp(self._audio if source == "audio" else self.files)

    def size(self, source: str, index: int) -> int:
        """Of the image's or the audio's file, in bytes."""
        return self._file(source, index).stat().st_size

    def content(self, source: str, index: int) -> bytes:
        """The bytes of the image's or the audio's file."""
        return self._file(source, index).read_bytes()

    def _file(self, source: str, index: int) -> Path:
        """The file of a sample's image or audio, which it has."""
        path = self._audio[index] if source == "audio" else self.files[index]
        assert path is not None
        return path

    def _paths(self, index: int) -> list[Path]:
        """The files of a sample: its image and, if there is one, its audio."""
        paths = [self.files[index]]
        audio = self._audio[index]
        if audio is not None:
            paths.append(audio)
        return paths

    def _collect(self, images: Iterable[AnnotatedImage], finder: ImageFinder, skipped: Counter[str]) -> None:
        """Keep the images that are on disk and have captions."""
        for image in images:
            pairs = _not_empty(image.captions)
            empty = len(image.captions) - len(pairs)
            if empty:
                skipped["empty caption"] += empty
            path = finder.find(image.file_name, image.image_id)
            if path is None:
                self.missing.append(image.file_name)
                skipped["missing image"] += 1
            elif not pairs:
                skipped["image without captions"] += 1
            else:
                self.files.append(path)
                self.image_ids.append(image.image_id)
                caption_ids, captions = zip(*pairs, strict=True)
                self.captions.append(captions)
                self.caption_ids.append(caption_ids)

    def _nothing_usable(self, source: Path, skipped: Counter[str]) -> str:
        reasons = counts_line(skipped) or "it lists none"
        message = f"{source}: no image can be used ({reasons})"
        if self.missing:
            message += f"; the first missing file is {self.missing[0]}"
        return message

    def _audio_files(self, folder: Path, skipped: Counter[str]) -> list[Path | None]:
        """By position, the audio file of the image's stem. One without samples, or of a kind that is not read, is
        skipped."""
        if not folder.is_dir():
            return [None] * len(self.files)
        there = _audio_by_stem(folder, {file.stem for file in self.files}, skipped)
        found: list[Path | None] = []
        for file in self.files:
            audio = there.get(file.stem)
            if audio is not None and not self._holds_samples(audio):
                audio = None
            found.append(audio)
        return found

    def _holds_samples(self, audio: Path) -> bool:
        """Whether an audio file has samples; one that has none, or is no audio, is counted."""
        size = audio.stat().st_size
        held = self.unreadable.attempt("audio", str(audio), lambda: has_samples(size, audio.read_bytes, str(audio)))
        if held is False:
            self.skipped["zero-length audio"] = self.skipped.get("zero-length audio", 0) + 1
        return bool(held)


def write_coco(
    samples: Iterable[Sample | EncodedSample],
    folder: str | Path,
    split: str,
    image_format: str = "jpg",
    audio_format: str = "flac",
    quality: int = 90,
) -> Path:
    """Write samples as `images/`, `audio/` and, last and atomically, `annotations/captions_<split>.json` (returned).

    Raises ValueError for a sample without an image, and for a key that occurs twice.
    """
    folder = Path(folder)
    for name in ("annotations", "images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    keys: set[str] = set()
    for sample in samples:
        encoded = encode_sample(sample, image_format, audio_format, quality)
        images_of_it = encoded.members.keys() & set(IMAGE_EXTENSIONS)
        if encoded.key in keys or not images_of_it:
            raise UserError(f"sample {encoded.key!r} of {split} has no image, or its key occurs twice")
        keys.add(encoded.key)
        for name in _write_images(encoded, folder):
            images.append({"id": encoded.image_id, "file_name": name})
        for caption_id, text in zip(encoded.caption_ids, encoded.captions, strict=True):
            annotations.append({"id": caption_id, "image_id": encoded.image_id, "caption": text})
    path = folder / "annotations" / f"captions_{split}.json"
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    write_json(path, content, indent=None)
    return path


def _write_images(encoded: EncodedSample, folder: Path) -> list[str]:
    """Write a sample's files, its audio too; returns the names of its images."""
    names = []
    for extension, data in encoded.members.items():
        place = folder / ("audio" if extension in AUDIO_EXTENSIONS else "images")
        place.mkdir(exist_ok=True)
        name = f"{encoded.key}.{extension}"
        (place / name).write_bytes(data)
        if extension in IMAGE_EXTENSIONS:
            names.append(name)
    return names


def _audio_by_stem(folder: Path, stems: Collection[str], skipped: Counter[str]) -> dict[str, Path]:
    """The audio files of a folder by the stem of their image, of several the kind that comes first in
    AUDIO_EXTENSIONS. Files of these stems in no such kind are counted."""
    ranked = []
    others = []
    for path in sorted(folder.iterdir()):
        extension = _extension(path)
        if extension in AUDIO_EXTENSIONS:
            ranked.append((AUDIO_EXTENSIONS.index(extension), path))
        else:
            others.append(path)
    there: dict[str, Path] = {}
    for _, path in sorted(ranked):
        there.setdefault(path.stem, path)
    for path in others:
        if path.stem in stems and path.stem not in there:
            skipped[f"audio of a kind that is not read ({path.suffix})"] += 1
    return there


def _extension(path: Path) -> str:
    """What a file is, in lower case and without the dot: jpg, png, flac, wav, …"""
    return path.suffix[1:].lower().replace("jpeg", "jpg")


def _not_empty(captions: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    """The captions that say something, without the white space around them."""
    stripped = [(caption_id, text.strip()) for caption_id, text in captions]
    return [(caption_id, text) for caption_id, text in stripped if text]


def _unique_keys(files: list[Path], image_ids: list[int]) -> list[str]:
    """A key for each image: its stem if that is plain and occurs once, else its id."""
    stems = Counter(path.stem for path in files)
    keys = []
    for path, image_id in zip(files, image_ids, strict=True):
        key = path.stem
        if stems[key] > 1 or not KEY.fullmatch(key):
            key = f"image-{image_id:012d}"
        keys.append(key)
    return keys
