"""The COCO caption layout on disk: `annotations/captions_<split>.json`, images, optionally `audio/<stem>.wav|flac`.

Serves any folder in that layout, the official COCO 2014 and 2017 downloads, and the Karpathy splits over them
(Karpathy & Fei-Fei 2015, arXiv:1412.2306). Lin et al. 2014, arXiv:1405.0312; annotations are read with pycocotools.
"""

import contextlib
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pycocotools.coco import COCO

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
from mm.files import write_json

logger = logging.getLogger(__name__)
OFFICIAL_YEARS = ("2017", "2014")
KARPATHY_SPLITS = ("train", "restval", "val", "test")


@dataclass(frozen=True)
class _Record:
    """One image of an annotation file: id, file name as written there, [(caption id, caption)]."""

    image_id: int
    file_name: str
    captions: list[tuple[int, str]]


class CocoFolder:
    """A split in COCO caption layout as a CaptionDataset: position -> Sample.

    What cannot be used is skipped at opening, counted in `skipped` and reported in one log line: images that are not
    on disk, images without captions, empty captions, annotations of unknown images, audio clips without samples.
    `missing` lists the file names that are not on disk, `files` the images that are, by position.

    Args:
        root: the folder.
        split: `<split>` of `captions_<split>.json`, or with the official files also plain "train" and "val";
            with `karpathy` one of train, restval, val, test or several joined by "+".
        karpathy: the official `dataset_coco.json`.
        audio_root: where `audio/` lies, if not in `root`.
    """

    def __init__(
        self, root: str | Path, split: str, *, karpathy: str | Path | None = None, audio_root: str | Path | None = None
    ) -> None:
        self.root, self.split = Path(root), split
        if not self.root.is_dir():
            raise FileNotFoundError(f"data folder {self.root} does not exist")
        self.name = f"{self.root.resolve().name}/{split}"
        skipped: Counter[str] = Counter()
        source = Path(karpathy) if karpathy is not None else _annotation_file(self.root, split)
        records = _read_karpathy(source, split) if karpathy is not None else _read_annotations(source, skipped)
        self.missing: list[str] = []
        self.files: list[Path] = []
        self.image_ids: list[int] = []
        self.captions: list[tuple[str, ...]] = []
        self.caption_ids: list[tuple[int, ...]] = []
        self._collect(records, _Images(self.root, split, trusted=source), skipped)
        if not self.files:
            raise ValueError(
                f"{source}: no image can be used ({_counts(skipped) or 'it lists none'})"
                + (f"; the first missing file is {self.missing[0]}" if self.missing else "")
            )
        self.keys = _unique_keys(self.files, self.image_ids)
        self._audio = _audio_files(Path(audio_root or self.root) / "audio", [f.stem for f in self.files], skipped)
        self.has_audio = [path is not None for path in self._audio]
        self.modalities = frozenset({"image", "text"} | ({"audio"} if any(self.has_audio) else set()))
        self.skipped = dict(skipped)
        if self.skipped:
            logger.warning("%s: skipped %s", self.name, _counts(skipped))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path, sound = self.files[index], self._audio[index]
        image = decode_image(path.read_bytes(), str(path))
        audio, rate = (None, 0) if sound is None else decode_audio(sound.read_bytes(), str(sound))
        return Sample(
            self.keys[index], self.image_ids[index], self.captions[index], self.caption_ids[index], image, audio, rate
        )

    def encoded(self, index: int) -> EncodedSample:
        """The sample with its image and audio as the bytes of their files."""
        files = [path for path in (self.files[index], self._audio[index]) if path is not None]
        members = {path.suffix[1:].lower().replace("jpeg", "jpg"): path.read_bytes() for path in files}
        return EncodedSample(
            self.keys[index], self.image_ids[index], self.captions[index], self.caption_ids[index], members
        )

    def _collect(self, records: Iterable[_Record], images: "_Images", skipped: Counter[str]) -> None:
        for record in records:
            captions = [(i, text.strip()) for i, text in record.captions if text.strip()]
            if empty := len(record.captions) - len(captions):
                skipped["empty caption"] += empty
            path = images.find(record.file_name, record.image_id)
            if path is None:
                self.missing.append(record.file_name)
                skipped["missing image"] += 1
            elif not captions:
                skipped["image without captions"] += 1
            else:
                self.files.append(path)
                self.image_ids.append(record.image_id)
                self.captions.append(tuple(text for _, text in captions))
                self.caption_ids.append(tuple(i for i, _ in captions))


def write_coco(
    samples: Iterable[Sample | EncodedSample],
    folder: str | Path,
    split: str,
    image_format: str = "jpg",
    audio_format: str = "flac",
    quality: int = 90,
) -> Path:
    """Write samples as `images/`, `audio/` and, last and atomically, `annotations/captions_<split>.json` (returned)."""
    folder = Path(folder)
    for name in ("annotations", "images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images, annotations, keys = [], [], set[str]()
    for sample in samples:
        encoded = encode_sample(sample, image_format, audio_format, quality)
        if encoded.key in keys or not encoded.members.keys() & set(IMAGE_EXTENSIONS):
            raise ValueError(f"sample {encoded.key!r} of {split} has no image, or its key occurs twice")
        keys.add(encoded.key)
        for extension, data in encoded.members.items():
            place = folder / ("audio" if extension in AUDIO_EXTENSIONS else "images")
            place.mkdir(exist_ok=True)
            (place / f"{encoded.key}.{extension}").write_bytes(data)
            if extension in IMAGE_EXTENSIONS:
                images.append({"id": encoded.image_id, "file_name": f"{encoded.key}.{extension}"})
        annotations += [
            {"id": i, "image_id": encoded.image_id, "caption": text}
            for i, text in zip(encoded.caption_ids, encoded.captions, strict=True)
        ]
    path = folder / "annotations" / f"captions_{split}.json"
    write_json(path, {"info": {}, "licenses": [], "images": images, "annotations": annotations}, indent=None)
    return path


def _annotation_file(root: Path, split: str) -> Path:
    folder = root / "annotations"
    for name in (split, *(split + year for year in OFFICIAL_YEARS if split in ("train", "val"))):
        if (folder / f"captions_{name}.json").is_file():
            return folder / f"captions_{name}.json"
    there = sorted(path.stem.removeprefix("captions_") for path in folder.glob("captions_*.json"))
    raise FileNotFoundError(
        f"no {folder / f'captions_{split}.json'}; "
        + (
            f"the splits there are {', '.join(there)}"
            if there
            else f"{root} holds no annotations/captions_<split>.json"
        )
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"annotation file {path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"annotation file {path} is not JSON: {error}") from error


def _read_annotations(path: Path, skipped: Counter[str]) -> list[_Record]:
    coco = COCO()
    coco.dataset = _read_json(path)
    if not (isinstance(coco.dataset, dict) and {"images", "annotations"} <= coco.dataset.keys()):
        raise ValueError(f"{path} is not a COCO caption file: it has no lists `images` and `annotations`")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # createIndex prints
            coco.createIndex()
        unknown = sum(len(anns) for image_id, anns in coco.imgToAnns.items() if image_id not in coco.imgs)
        if unknown:
            skipped["annotation of unknown images"] = unknown
        for image in coco.dataset["images"]:
            if image["file_name"] != (other := coco.imgs[image["id"]]["file_name"]):
                raise ValueError(f"image id {image['id']} stands for {image['file_name']!r} and for {other!r}")
        return [
            _Record(
                int(i),
                str(image["file_name"]),
                [(int(a["id"]), _text(a["caption"])) for a in coco.imgToAnns.get(i, [])],
            )
            for i, image in coco.imgs.items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a COCO caption file: {type(error).__name__} {error}") from error


def _text(caption: Any) -> str:
    """A caption as a file says it; null is an empty one, not the word "None"."""
    return "" if caption is None else str(caption)


def _read_karpathy(path: Path, split: str) -> list[_Record]:
    wanted = split.split("+")
    if unknown := [name for name in wanted if name not in KARPATHY_SPLITS]:
        raise ValueError(f"{unknown[0]!r} is not a Karpathy split; use {', '.join(KARPATHY_SPLITS)} or train+restval")
    try:
        return [
            _Record(
                int(image["cocoid"]),
                "/".join(filter(None, (image.get("filepath"), image["filename"]))),
                [(int(s["sentid"]), _text(s["raw"])) for s in image["sentences"]],
            )
            for image in _read_json(path)["images"]
            if image["split"] in wanted
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not Karpathy's dataset_coco.json: {type(error).__name__} {error}") from error


class _Images:
    """Finds the images an annotation file names, by listing each folder once. File names are data, not paths."""

    def __init__(self, root: Path, split: str, trusted: Path) -> None:
        self.root, self.source = root, trusted
        names = [
            "images",
            split,
            *(split + year for year in OFFICIAL_YEARS),
            *(s + year for s in ("train", "val") for year in OFFICIAL_YEARS),
            "",
        ]
        year = re.search(r"20\d\d", trusted.stem)
        names.sort(key=lambda name: bool(year) and name != "images" and year.group() not in name)  # type: ignore[union-attr]
        self.folders = [root / name for name in dict.fromkeys(names) if (root / name).is_dir()]
        self.listed: dict[Path, set[str]] = {}

    def find(self, file_name: str, image_id: int) -> Path | None:
        name = PurePosixPath(file_name)
        if name.is_absolute() or ".." in name.parts or "\\" in file_name or ":" in file_name or not name.name:
            raise ValueError(f"{self.source}: file name {file_name!r} of image {image_id} leaves the data folder")
        # The 2017 download renamed the 2014 images to their twelve-digit ids, so Karpathy's names are tried as both.
        candidates = [name, PurePosixPath(name.name)]
        if re.fullmatch(r"COCO_(train|val)2014_\d{12}\.jpg", name.name):
            candidates.append(PurePosixPath(name.name[-16:]))
        for candidate in candidates:
            for folder in self.folders:
                if self._exists(folder / candidate):
                    return folder / candidate
        return None

    def _exists(self, path: Path) -> bool:
        if path.parent not in self.listed:
            self.listed[path.parent] = {p.name for p in path.parent.iterdir()} if path.parent.is_dir() else set()
        return path.name in self.listed[path.parent]


def _unique_keys(files: list[Path], image_ids: list[int]) -> list[str]:
    stems = Counter(path.stem for path in files)
    ok = re.compile(r"[A-Za-z0-9_-]{1,80}")
    return [
        path.stem if ok.fullmatch(path.stem) and stems[path.stem] == 1 else f"image-{image_id:012d}"
        for path, image_id in zip(files, image_ids, strict=True)
    ]


def _audio_files(folder: Path, stems: list[str], skipped: Counter[str]) -> list[Path | None]:
    if not folder.is_dir():
        return [None] * len(stems)
    there = {path.stem: path for path in folder.iterdir() if path.suffix[1:].lower() in AUDIO_EXTENSIONS}
    return [_with_samples(there.get(stem), skipped) for stem in stems]


def _with_samples(path: Path | None, skipped: Counter[str]) -> Path | None:
    if path is None or path.stat().st_size >= SUSPICIOUSLY_SMALL or audio_frames(path.read_bytes(), str(path)):
        return path
    skipped["zero-length audio"] += 1
    return None


def _counts(skipped: Counter[str]) -> str:
    return ", ".join(f"{n} × {what}" for what, n in skipped.items())
