"""Annotation files: COCO's `captions_<split>.json` and Karpathy's `dataset_coco.json`, and the images they name.

Lin et al. 2014, arXiv:1405.0312; annotations are read with pycocotools. The Karpathy splits are those of Karpathy &
Fei-Fei 2015, arXiv:1412.2306.
"""

import contextlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pycocotools.coco import COCO

from kernels.errors import MissingError, UserError
from kernels.parsing import parse_json
from mm.data.fields import caption_text, whole_id
from mm.files import leaves_folder

OFFICIAL_YEARS = ("2017", "2014")
OFFICIAL_PARTS = ("train", "val")
KARPATHY_SPLITS = ("train", "restval", "val", "test")
OFFICIAL_FOLDERS = ("train2017", "train2014", "val2017", "val2014")
NAME_OF_2014 = re.compile(r"COCO_(train|val)2014_\d{12}\.jpg")
NAME_OF_2017 = re.compile(r"\d{12}\.jpg")
"""Names of the official images hold the image's id: whichever official folder has the file, it is the image."""


@dataclass(frozen=True)
class AnnotatedImage:
    """One image of an annotation file: its id, its file name as written there, and [(caption id, caption)]."""

    image_id: int
    file_name: str
    captions: list[tuple[int, str]]


def find_annotations(root: Path, split: str) -> Path:
    """The annotation file of a split; "train" and "val" may also be those of an official year.

    Raises FileNotFoundError, naming the splits that exist.
    """
    folder = root / "annotations"
    names = [split]
    if split in OFFICIAL_PARTS:
        names += [split + year for year in OFFICIAL_YEARS]
    for name in names:
        path = folder / f"captions_{name}.json"
        if path.is_file():
            return path
    stems = [path.stem for path in folder.glob("captions_*.json")]
    there = sorted(stem.removeprefix("captions_") for stem in stems)
    remedy = f"{root} holds no annotations/captions_<split>.json"
    if there:
        remedy = f"the splits there are {', '.join(there)}"
    wanted = folder / f"captions_{split}.json"
    raise MissingError(f"no {wanted}; {remedy}")


def read_annotations(path: Path, skipped: Counter[str]) -> list[AnnotatedImage]:
    """The images of a COCO caption file. Annotations of images that it does not list, and those whose id an
    image has already, are counted in `skipped`.

    Raises FileNotFoundError for a missing file, ValueError for one that is no COCO caption file, or that has an id or a
    caption which is none.
    """
    content = _read_json(path)
    if not (isinstance(content, dict) and {"images", "annotations"} <= content.keys()):
        raise UserError(f"{path} is not a COCO caption file: it has no lists `images` and `annotations`")
    try:
        coco = _indexed(content)
        _count_unknown(coco, skipped)
        return [_coco_image(coco, image_id, skipped) for image_id in coco.imgs]
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a COCO caption file: {type(error).__name__} {error}") from error


def read_karpathy(path: Path, split: str) -> list[AnnotatedImage]:
    """The images of one Karpathy split, or of several joined by "+".

    Raises FileNotFoundError for a missing file, ValueError for another split, for a file of another kind, and for an id
    or a caption that is none.
    """
    wanted = split.split("+")
    for name in wanted:
        if name not in KARPATHY_SPLITS:
            known = ", ".join(KARPATHY_SPLITS)
            raise UserError(f"{name!r} is not a Karpathy split; use {known} or train+restval")
    content = _read_json(path)
    try:
        images = content["images"]
        return [_karpathy_image(image) for image in images if image["split"] in wanted]
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not Karpathy's dataset_coco.json: {type(error).__name__} {error}") from error


class ImageFinder:
    """Finds the images an annotation file names, by listing each folder once. File names are data, not paths.

    A name with a folder is looked for in that folder, never elsewhere by its last part: another image may have it.
    Official names are the exception, since no two images share one.

    Args:
        root: the data folder.
        split: images may lie in a folder of this name, in `images` or in root; official ones in those of the official
            years too.
        source: the annotation file; folders of its year are searched first.
    """

    def __init__(self, root: Path, split: str, source: Path) -> None:
        self.source = source
        self.folders = _folders(root, _by_year(_folder_names(split), source))
        self.official = _folders(root, _by_year([*_folder_names(split), *OFFICIAL_FOLDERS], source))
        self.listed: dict[Path, set[str]] = {}

    def find(self, file_name: str, image_id: int) -> Path | None:
        """The image's path, None if it is not on disk. Raises ValueError for a name that leaves the data folder."""
        name = PurePosixPath(file_name)
        if leaves_folder(file_name) or not name.name:
            raise UserError(f"{self.source}: file name {file_name!r} of image {image_id} leaves the data folder")
        for folder, candidate in self._places(name):
            path = folder / candidate
            if self._exists(path):
                return path
        return None

    def _places(self, name: PurePosixPath) -> Iterator[tuple[Path, PurePosixPath]]:
        """Folders, and what the image may be called there."""
        for folder in self.folders:
            yield folder, name
        candidates = []
        if NAME_OF_2014.fullmatch(name.name):
            # The 2017 download renamed the 2014 images to their twelve-digit ids: Karpathy's names are tried as both.
            candidates = [PurePosixPath(name.name), PurePosixPath(name.name[-16:])]
        elif NAME_OF_2017.fullmatch(name.name):
            candidates = [PurePosixPath(name.name)]
        for candidate in candidates:
            for folder in self.official:
                yield folder, candidate

    def _exists(self, path: Path) -> bool:
        folder = path.parent
        if folder not in self.listed:
            entries = folder.iterdir() if folder.is_dir() else ()
            self.listed[folder] = {entry.name for entry in entries}
        return path.name in self.listed[folder]


def _folder_names(split: str) -> list[str]:
    """Where a split's images may lie, in the order in which they are looked for; "" is the data folder itself."""
    return ["images", split, *(split + year for year in OFFICIAL_YEARS), ""]


def _folders(root: Path, names: Iterable[str]) -> list[Path]:
    """The folders of these names that are there."""
    folders = [root / name for name in dict.fromkeys(names)]
    return [folder for folder in folders if folder.is_dir()]


def _by_year(names: list[str], source: Path) -> list[str]:
    """Folders of the annotation file's own year come before the others, and `images` before all."""
    found = re.search(r"20\d\d", source.stem)
    if found is None:
        return names
    year = found.group()
    return sorted(names, key=lambda name: name != "images" and year not in name)


def _read_json(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingError(f"annotation file {path} does not exist") from None
    return parse_json(content, f"annotation file {path}")


def _indexed(content: dict[str, Any]) -> COCO:
    """The file's content as pycocotools indexes it. Raises ValueError for an id of two images."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # createIndex prints
        coco.createIndex()
    for image in content["images"]:
        image_id = image["id"]
        name = image["file_name"]
        other = coco.imgs[image_id]["file_name"]
        if name != other:
            raise UserError(f"image id {image_id} stands for {name!r} and for {other!r}")
    return coco


def _count_unknown(coco: COCO, skipped: Counter[str]) -> None:
    unknown = 0
    for image_id, annotations in coco.imgToAnns.items():
        if image_id not in coco.imgs:
            unknown += len(annotations)
    if unknown:
        skipped["annotation of unknown images"] = unknown


def _coco_image(coco: COCO, key: Any, skipped: Counter[str]) -> AnnotatedImage:
    image_id = whole_id(key, "image")
    file_name = str(coco.imgs[key]["file_name"])
    captions: dict[int, str] = {}
    for entry in coco.imgToAnns.get(key, []):
        caption_id = whole_id(entry["id"], "caption")
        if caption_id in captions:
            skipped["repeated annotation"] += 1  # pycocotools lists both
            continue
        captions[caption_id] = caption_text(entry["caption"], caption_id)
    return AnnotatedImage(image_id, file_name, list(captions.items()))


def _karpathy_image(image: Mapping[str, Any]) -> AnnotatedImage:
    image_id = whole_id(image["cocoid"], "image")
    parts = (image.get("filepath"), image["filename"])
    file_name = "/".join(part for part in parts if part)
    captions = []
    for sentence in image["sentences"]:
        caption_id = whole_id(sentence["sentid"], "caption")
        captions.append((caption_id, caption_text(sentence["raw"], caption_id)))
    return AnnotatedImage(image_id, file_name, captions)
