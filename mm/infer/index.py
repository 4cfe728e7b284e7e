"""A folder of images that can be searched by text, image or sound."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kernels.errors import UserError
from kernels.parsing import parse_json
from mm.data.media import IMAGE_EXTENSIONS
from mm.data.skipped import warn_of_skipped
from mm.files import private_name
from mm.infer import base
from mm.infer.ahead import read_ahead
from mm.infer.base import BaseEmbedder
from mm.infer.exact import nearest
from mm.infer.inputs import one_of
from mm.infer.loading import load
from mm.progress import Course

logger = logging.getLogger(__name__)
FILE = "index.safetensors"
NAMED = 20
"""Files that could not be read that are named in the log; all of them are in `Index.skipped`."""


@dataclass(frozen=True)
class IndexedFile:
    """One file as it was when it was read: its path in the folder, its bytes, its time of change in nanoseconds."""

    path: str
    size: int
    mtime: int


@dataclass(frozen=True)
class Hit:
    """One image that was found.

    Args:
        path: of the file.
        score: cosine of its vector and the query's.
    """

    path: Path
    score: float


class Index:
    """The unit vectors of all images in a folder, and the model that made them, which embeds what is searched for.

    Args:
        model: reads the images and the queries.
        root: the folder.
        files: N images of it.
        vectors: (N, E) float32.
        skipped: the files that could not be read, by their paths in the folder, and why.
    """

    def __init__(
        self,
        model: BaseEmbedder,
        root: Path,
        files: Sequence[IndexedFile],
        vectors: Tensor,
        skipped: Mapping[str, str],
    ) -> None:
        self.model = model
        self.root = root
        self.files = tuple(files)
        self.vectors = vectors
        self.skipped = dict(skipped)

    def __len__(self) -> int:
        """How many images can be found."""
        return len(self.files)

    @classmethod
    def build(cls, model: BaseEmbedder, folder: str | PathLike[str], known: "Index | None" = None) -> "Index":
        """Embed every image in a folder and in the folders in it.

        Args:
            model: reads images.
            folder: hidden files and folders in it are passed over; what is no image is counted, and said in the log.
            known: an older index of the folder by the same model, whose vectors are kept for files of unchanged size
                and time of change.

        Raises:
            ValueError: there is no such folder, it holds no image that can be read, the model reads no images, or
                `known` is by another model or of another folder.
        """
        root = Path(folder).resolve()
        found = list(images_in(root))
        kept: dict[IndexedFile, Tensor] = {}
        if known is not None:
            require_model(known.model.digest, known.model.name, model)
            if known.root != root:
                raise UserError(f"the older index is of {known.root}, not of {root}: build it into another folder")
            kept = dict(zip(known.files, known.vectors, strict=True))
        new = [file for file in found if file not in kept]
        fresh, skipped = embed_files(model, root, new)
        vectors = kept | fresh
        files = [file for file in found if file in vectors]
        if not files:
            counted = (
                f"{len(skipped)} could not be read" if skipped else f"{', '.join(IMAGE_EXTENSIONS)} are looked for"
            )
            raise UserError(f"{root} holds no image that can be searched: {counted}")
        logger.info("%s: %s images, %s of them read now", root, f"{len(files):,}", f"{len(fresh):,}")
        return cls(model, root, files, torch.stack([vectors[file] for file in files]), skipped)

    def search(self, text: Any = None, k: int = 10, *, image: Any = None, audio: Any = None) -> list[Any]:
        """Find the images nearest to a query.

        Args:
            text: a string, or a list of them; or
            k: how many to find.
            image: one or a list, as `encode_image` takes them; or
            audio: one or a list, as `encode_audio` takes them.

        Returns:
            at most k `Hit`s, best first, of one query; a list of these of a list.

        Raises:
            ValueError: not exactly one kind of query is given, the model does not read it, or k is not positive.
        """
        modality, given = one_of(text=text, image=image, audio=audio)
        queries = self.model.encode(modality, given)
        rows = queries if queries.ndim == 2 else queries[None]
        scores, places = nearest(self.vectors, rows.to(self.vectors.device), k)
        hits = [self._hits(*found) for found in zip(scores.tolist(), places.tolist(), strict=True)]
        return hits if queries.ndim == 2 else hits[0]

    def to(self, device: str | torch.device) -> "Index":
        """The same index, its vectors on a device, where they are searched."""
        return Index(self.model, self.root, self.files, self.vectors.to(device), self.skipped)

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write the index into a folder, whole or not at all.

        Returns:
            the file.
        """
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        listing = {"files": [list(asdict(file).values()) for file in self.files], "skipped": self.skipped}
        content = bytearray(json.dumps(listing).encode())
        tensors = {
            "vectors": self.vectors.cpu().contiguous(),
            "listing": torch.frombuffer(content, dtype=torch.uint8),
        }
        name = self.model.name
        if Path(name).is_dir():
            name = str(Path(name).resolve())
        about = {"root": str(self.root), "model": name, "digest": self.model.digest}
        temporary = private_name(path)
        save_file(tensors, temporary, about)
        temporary.replace(path)
        return path

    @classmethod
    def load(cls, folder: str | PathLike[str], model: BaseEmbedder | None = None, device: str = "auto") -> "Index":
        """Read an index.

        Args:
            folder: that it was saved into.
            model: that it was built by; without one, what lies under the name that the index keeps.
            device: of a model that is loaded here, see `mm.load`.

        Raises:
            ValueError: the folder holds no index, or the model is another one than it was built by.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise UserError(f"{folder} holds no index: build one with Index.build(model, images).save(folder)")
        try:
            with safe_open(path, "pt") as stored:
                about = stored.metadata()
                vectors = stored.get_tensor("vectors")
                listing = parse_json(stored.get_tensor("listing").numpy().tobytes(), "its listing")
            files = [IndexedFile(*file) for file in listing["files"]]
            root, name, digest = about["root"], about["model"], about["digest"]
            skipped = dict(listing["skipped"])
            if vectors.shape[0] != len(files) or vectors.dtype != torch.float32:
                raise UserError(f"{len(files)} files and vectors {tuple(vectors.shape)} of {vectors.dtype}")
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no index, or a damaged one ({error}): build it again") from error
        if model is None:
            try:
                model = load(name, device)
            except ValueError as error:
                raise UserError(f"the model of the index {folder} is not there: {error}") from error
        require_model(digest, name, model)
        return cls(model, Path(root), files, vectors, skipped)

    def _hits(self, scores: Sequence[float], places: Sequence[int]) -> list[Hit]:
        hits = []
        for score, place in zip(scores, places, strict=True):
            hits.append(Hit(self.root / self.files[place].path, score))
        return hits


def require_model(digest: str, name: str, model: BaseEmbedder) -> None:
    """Check that a model is the one that vectors were made by.

    Raises:
        ValueError: it is another one: their vectors cannot be compared.
    """
    if model.digest != digest:
        raise UserError(
            f"the index was built by {name} ({digest}), not by {model.name} ({model.digest}):"
            " search it with that model, or build it again"
        )


def images_in(root: Path) -> Iterator[IndexedFile]:
    """The images in a folder and in the folders in it, in the order of their paths.

    Raises:
        ValueError: there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images")
    others: Counter[str] = Counter()

    def unread(error: OSError) -> None:
        others["folder that cannot be read"] += 1

    for here, folders, names in os.walk(root, onerror=unread):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = Path(here, name)
            extension = path.suffix.lower().removeprefix(".")
            if extension not in IMAGE_EXTENSIONS:
                others[f"no image (.{extension})"] += 1
            elif not path.is_file():
                others["link to nothing"] += 1
            else:
                held = path.stat()
                yield IndexedFile(str(path.relative_to(root)), held.st_size, held.st_mtime_ns)
    warn_of_skipped(str(root), others)


def embed_files(
    model: BaseEmbedder, root: Path, files: Sequence[IndexedFile]
) -> tuple[dict[IndexedFile, Tensor], dict[str, str]]:
    """Embed images, in batches that a thread pool reads.

    Args:
        model: reads images.
        root: the folder that the files lie in.
        files: images.

    Returns:
        vectors (E,) of those that can be read, and the others by their paths, each with what is wrong with it.
    """
    paths = [root / file.path for file in files]
    vectors: dict[IndexedFile, Tensor] = {}
    skipped: dict[str, str] = {}
    if paths:
        model.inputs("image", paths[:1])
    read = partial(model.read, "image")
    place = 0
    with Course(f"images of {root.name}", len(files)) as course:
        for begun in read_ahead(paths, read, base.ROWS):
            rows = []
            readable = []
            for future, file in zip(begun, files[place : place + len(begun)], strict=True):
                try:
                    rows.append(future.result())
                    readable.append(file)
                except (ValueError, OSError) as error:
                    skipped[file.path] = " ".join(str(error).split())
            if rows:
                with torch.inference_mode():
                    found = model.vectors("image", model.stack("image", rows)).float().cpu()
                vectors.update(zip(readable, found.clone(), strict=True))
            place += len(begun)
            course.advance(len(begun))
    for path, reason in list(skipped.items())[:NAMED]:
        logger.warning("skipped %s: %s", path, reason)
    if len(skipped) > NAMED:
        logger.warning("skipped %s more that cannot be read", f"{len(skipped) - NAMED:,}")
    return vectors, skipped
