"""The images that can be searched: an index, with what a page shows of each of its images.

Requests name images by their number; no path comes from them.
"""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from kernels.errors import UserError
from kernels.parsing import parse_json
from mm.data.media import decode_image, pil_image
from mm.files import leaves_folder
from mm.infer.base import BaseEmbedder
from mm.infer.exact import nearest
from mm.infer.index import FILE, Index
from mm.serve.inputs import InputReader, Refused, Row

logger = logging.getLogger(__name__)
SIDE = 640
"""Pixels of the longer side of an image that is shown, at most."""
KEPT = 512
"""Images that are kept as they are shown, and as the model reads them."""


@dataclass(frozen=True)
class Identity:
    """What an index asks of the model that it was built by."""

    name: str
    digest: str


@dataclass(frozen=True)
class Found:
    """An image that was found.

    Args:
        number: of the image in the index.
        score: cosine, or log-odds where it was re-ranked.
        caption: what is known of it, or nothing.
    """

    number: int
    score: float
    caption: str


@dataclass(frozen=True)
class Shown:
    """An image as a page shows it: all of it, as a JPEG of a size in pixels."""

    content: bytes
    width: int
    height: int


class Gallery:
    """An index that is searched by vectors.

    Args:
        folder: of the index; where its file is replaced by another one, that is searched from then on.
        model: that the index must be of.
        captions: by the path of an image in its folder, or by its name.
        reader: of images, for re-ranking.
    """

    def __init__(self, folder: Path, model: Identity, captions: Mapping[str, str], reader: InputReader) -> None:
        self.path = folder / FILE
        self.model = model
        self.captions = captions
        self.reader = reader
        self._load()

    def _load(self) -> None:
        self.stamp = self._stamp()
        self.index = Index.load(self.path.parent, cast(BaseEmbedder, self.model))
        self.shown = lru_cache(KEPT)(self._shown)
        self.row = lru_cache(KEPT)(self._row)

    def __len__(self) -> int:
        """How many images can be found."""
        return len(self.index)

    def refresh(self) -> None:
        """Read the index again where its file is another one; one that cannot be read leaves the last in place."""
        stamp = self._stamp()
        if stamp == self.stamp or stamp is None:
            return
        try:
            self._load()
            logger.info("searching another index: %s images", f"{len(self):,}")
        except UserError as error:
            self.stamp = stamp
            logger.warning("still searching the last index: %s", error)

    def search(self, vector: np.ndarray, count: int) -> list[Found]:
        """The images nearest to a vector (E,), best first."""
        index = self.index
        scores, places = nearest(index.vectors, torch.from_numpy(vector)[None], min(count, len(index)))
        pairs = zip(places[0].tolist(), scores[0].tolist(), strict=True)
        return [Found(place, score, self._caption(index.files[place].path)) for place, score in pairs]

    def vector(self, number: int) -> np.ndarray:
        """Of one image (E,). Raises Refused where there is none of that number."""
        self._require(number)
        return self.index.vectors[number].numpy()

    def _require(self, number: int) -> None:
        if not 0 <= number < len(self.index):
            raise Refused(404, f"no image {number}: there are {len(self.index):,}")

    def _content(self, number: int) -> bytes:
        self._require(number)
        path = self.index.files[number].path
        if leaves_folder(path):
            raise Refused(404, f"image {number} is none of the index's folder")
        try:
            return (self.index.root / path).read_bytes()
        except OSError as error:
            raise Refused(404, f"image {number} is no longer there") from error

    def _shown(self, number: int) -> Shown:
        try:
            image = pil_image(decode_image(self._content(number), f"of number {number}"))
        except UserError as error:
            raise Refused(404, f"image {number} cannot be read any more") from error
        image.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=88)
        return Shown(buffer.getvalue(), *image.size)

    def _row(self, number: int) -> Row:
        return self.reader.read("image", self._content(number))

    def _caption(self, path: str) -> str:
        return self.captions.get(path) or self.captions.get(Path(path).name, "")

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino


def read_captions(path: Path) -> dict[str, str]:
    """The first caption of each image by its file's name, from a file of COCO's captions.

    Raises:
        ValueError: it is none.
    """
    content = parse_json(path.read_bytes(), str(path))
    try:
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        found: dict[str, str] = {}
        for annotation in content["annotations"]:
            found.setdefault(names[annotation["image_id"]], str(annotation["caption"]))
        return found
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} holds no captions as COCO's files do: {error!r} is missing") from error


def described(found: Sequence[Found]) -> list[dict[str, Any]]:
    """What JSON says of images that were found."""
    return [
        {"image": each.number, "score": round(each.score, 6), "caption": each.caption, "url": f"/images/{each.number}"}
        for each in found
    ]
