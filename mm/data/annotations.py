"""Annotation files: COCO's `captions_<split>.json` and Karpathy's `dataset_coco.json`, and the images they name.

Lin et al. 2014, arXiv:1405.0312; annotations are read with pycocotools. The Karpathy splits are those of Karpathy &
Fei-Fei 2015, arXiv:1412.2306.
"""

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pycocotools.coco import COCO

from mm.files import leaves_folder

OFFICIAL_YEARS = ("2017", "2014")
OFFICIAL_PARTS = ("train", "val")
KARPATHY_SPLITS = ("train", "restval", "val", "test")


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
    raise FileNotFoundError(f"no {wanted}; {remedy}")


def read_annotations(path: Path, skipped: Counter[str]) -> list[AnnotatedImage]:
    """The images of a COCO caption file. Annotations of images that it does not list, and those whose id an
    image has already, are counted in `skipped`.

    Raises FileNotFoundError for a missing file, ValueError for one that is no COCO caption file.
    """
    content = _read_json(path)
    if not (isinstance(content, dict) and {"images", "annotations"} <= content.keys()):
        raise ValueError(f"{path} is not a COCO caption file: it has no lists `images` and `annotations`")
    try:
        coco = _indexed(content)
        _count_unknown(coco, skipped)
        return [_coco_image(coco, image_id, skipped) for image_id in coco.imgs]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a COCO caption file: {type(error).__name__} {error}") from error


def read_karpathy(path: Path, split: str) -> list[AnnotatedImage]:
    """The images of one Karpathy split, or of several joined by "+".

    Raises FileNotFoundError for a missing file, ValueError for another split and for a file of another kind.
    """
    wanted = split.split("+")
    for name in wanted:
        if name not in KARPATHY_SPLITS:
            known = ", ".join(KARPATHY_SPLITS)
            raise ValueError(f"{name!r} is not a Karpathy split; use {known} or train+restval")
    try:
        images = _read_json(path)["images"]
        return [_karpathy_image(image) for image in images if image["split"] in wanted]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not Karpathy's dataset_coco.json: {type(error).__name__} {error}") from error


class ImageFinder:
    """Finds the images an annotation file names, by listing each folder once. File names are data, not paths.

    Args:
        root: the data folder.
        split: images may lie in a folder of this name, in `images`, in those of the official years or in root.
        source: the annotation file; folders of its year are searched first.
    """

    def __init__(self, root: Path, split: str, source: Path) -> None:
        self.source = source
        names = _by_year(_folder_names(split), source)
        folders = [root / name for name in dict.fromkeys(names)]
        self.folders = [folder for folder in folders if folder.is_dir()]
        self.listed: dict[Path, set[str]] = {}

    def find(self, file_name: str, image_id: int) -> Path | None:
        """The image's path, None if it is not on disk. Raises ValueError for a name that leaves the data folder."""
        name = PurePosixPath(file_name)
        if leaves_folder(file_name) or not name.name:
            raise ValueError(f"{self.source}: file name {file_name!r} of image {image_id} leaves the data folder")
        candidates = [name, PurePosixPath(name.name)]
        # The 2017 download renamed the 2014 images to their twelve-digit ids, so Karpathy's names are tried as both.
        if re.fullmatch(r"COCO_(train|val)2014_\d{12}\.jpg", name.name):
            candidates.append(PurePosixPath(name.name[-16:]))
        for candidate in candidates:
            for folder in self.folders:
                path = folder / candidate
                if self._exists(path):
                    return path
        return None

    def _exists(self, path: Path) -> bool:
        folder = path.parent
        if folder not in self.listed:
            entries = folder.iterdir() if folder.is_dir() else ()
            self.listed[folder] = {entry.name for entry in entries}
        return path.name in self.listed[folder]


def _folder_names(split: str) -> list[str]:
    """Where images may lie, in the order in which they are looked for; "" is the data folder itself."""
    names = ["images", split]
    names += [split + year for year in OFFICIAL_YEARS]
    for part in OFFICIAL_PARTS:
        names += [part + year for year in OFFICIAL_YEARS]
    names.append("")
    return names


def _by_year(names: list[str], source: Path) -> list[str]:
    """Folders of the annotation file's own year come before the others, and `images` before all."""
    found = re.search(r"20\d\d", source.stem)
    if found is None:
        return names
    year = found.group()
    return sorted(names, key=lambda name: name != "images" and year not in name)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"annotation file {path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"annotation file {path} is not JSON: {error}") from error


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
            raise ValueError(f"image id {image_id} stands for {name!r} and for {other!r}")
    return coco


def _count_unknown(coco: COCO, skipped: Counter[str]) -> None:
    unknown = 0
    for image_id, annotations in coco.imgToAnns.items():
        if image_id not in coco.imgs:
            unknown += len(annotations)
    if unknown:
        skipped["annotation of unknown images"] = unknown


def _coco_image(coco: COCO, key: Any, skipped: Counter[str]) -> AnnotatedImage:
    image_id = int(key)
    file_name = str(coco.imgs[key]["file_name"])
    captions: dict[int, str] = {}
    for entry in coco.imgToAnns.get(key, []):
        caption_id = int(entry["id"])
        if caption_id in captions:
            skipped["repeated annotation"] += 1  # pycocotools lists both
            continue
        captions[caption_id] = _text(entry["caption"])
    return AnnotatedImage(image_id, file_name, list(captions.items()))


def _karpathy_image(image: Mapping[str, Any]) -> AnnotatedImage:
    image_id = int(image["cocoid"])
    parts = (image.get("filepath"), image["filename"])
    file_name = "/".join(part for part in parts if part)
    captions = []
    for sentence in image["sentences"]:
        caption_id = int(sentence["sentid"])
        captions.append((caption_id, _text(sentence["raw"])))
    return AnnotatedImage(image_id, file_name, captions)


def _text(caption: Any) -> str:
    """A caption as a file says it; null is an empty one, not the word "None"."""
    return "" if caption is None else str(caption)
