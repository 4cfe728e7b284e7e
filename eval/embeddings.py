"""Embeddings that anybody made, in one .npz file.

Arrays: `image (N, D)`, `text (M, D)`, `image_ids (N,)`, `caption_image_ids (M,)`; optional `caption_ids (M,)`,
`audio (A, D)` and `audio_image_ids (A,)`. Vectors are made unit length here: similarity is the cosine.
"""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eval.retrieval import ids_of
from kernels.errors import MissingError, UserError

REQUIRED = ("image", "text", "image_ids", "caption_image_ids")
VECTORS = {"image": ("image_ids",), "text": ("caption_image_ids", "caption_ids"), "audio": ("audio_image_ids",)}
"""Vectors -> the ids that run parallel to them."""
Scorer = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Positions in the images (P,) and in the captions (P,) -> scores of these pairs (P,)."""


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors and ids; see the module's first lines. What is optional may be None."""

    image: np.ndarray
    text: np.ndarray
    image_ids: np.ndarray
    caption_image_ids: np.ndarray
    caption_ids: np.ndarray | None = None
    audio: np.ndarray | None = None
    audio_image_ids: np.ndarray | None = None

    @classmethod
    def of(cls, arrays: Mapping[str, ArrayLike]) -> "Embeddings":
        """From named arrays.

        Raises:
            ValueError: on a missing array, other shapes, ids that are not integers or that repeat, NaN, and where no
                image has a caption.
        """
        if missing := [name for name in REQUIRED if name not in arrays]:
            raise UserError(f"embeddings lack {', '.join(missing)}; they hold {', '.join(arrays) or 'nothing'}")
        found: dict[str, Any] = {}
        for name, ids in VECTORS.items():
            if name not in arrays:
                continue
            found[name] = _unit(_numbers(arrays[name], name), name)
            for each in ids:
                if each in arrays:
                    found[each] = ids_of(_numbers(arrays[each], each), found[name], each)
        if "audio" in found and "audio_image_ids" not in found:
            raise UserError("embeddings have audio but no audio_image_ids: which image does each audio belong to?")
        _check_widths({name: found[name] for name in VECTORS if name in found})
        check_partners(found["image_ids"], found["caption_image_ids"])
        return cls(**found)

    @classmethod
    def load(cls, path: Path | str) -> "Embeddings":
        """From an .npz file, or a run's folder that holds embeddings.npz, read without pickle.

        Raises:
            FileNotFoundError: where there is none.
            ValueError: naming any other file.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "embeddings.npz"
        if not path.is_file():
            raise MissingError(f"{path}: no such file of embeddings (.npz)")
        try:
            arrays = np.load(path, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("one array without a name")
            with arrays:
                found = {name: arrays[name] for name in arrays.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path} is not an .npz file of plain arrays ({error})") from None
        try:
            return cls.of(found)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, without what is None."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: array for name, array in found.items() if array is not None}

    def partners(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the images that have a caption, and of the captions whose image is there."""
        images = np.flatnonzero(np.isin(self.image_ids, self.caption_image_ids))
        captions = np.flatnonzero(np.isin(self.caption_image_ids, self.image_ids))
        return images, captions

    def paired(self) -> "Embeddings":
        """Without the images and captions that have no partner, which no retrieval between the two can be asked for."""
        images, captions = self.partners()
        caption_ids = None if self.caption_ids is None else self.caption_ids[captions]
        return replace(
            self,
            image=self.image[images],
            text=self.text[captions],
            image_ids=self.image_ids[images],
            caption_image_ids=self.caption_image_ids[captions],
            caption_ids=caption_ids,
        )

    def alone(self) -> dict[str, int]:
        """How many images and captions have no partner, by reason; empty where all have one."""
        images, captions = self.partners()
        counts = {
            "image without captions": len(self.image_ids) - len(images),
            "caption without image": len(self.caption_image_ids) - len(captions),
        }
        return {reason: count for reason, count in counts.items() if count}

    def cosine(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """The `Scorer` of the vectors alone."""
        products = self.image[images] * self.text[captions]
        return products.sum(1)


@dataclass(frozen=True)
class ScoredItems:
    """Embeddings of a split, and how else its pairs are scored."""

    embeddings: Embeddings
    name: str
    """What a protocol calls them: a split, a file, a retriever."""
    joint: Mapping[str, Scorer] = field(default_factory=dict)
    """Further scorers by name, such as a run's match head."""

    def scorers(self) -> dict[str, Scorer]:
        """`cosine` and the joint ones."""
        return {"cosine": self.embeddings.cosine, **self.joint}

    def paired(self) -> "ScoredItems":
        """Without the images and captions that have no partner; scorers are asked by the positions of before."""
        kept_images, kept_captions = self.embeddings.partners()

        def of_kept(score: Scorer) -> Scorer:
            return lambda images, captions: score(kept_images[images], kept_captions[captions])

        joint = {name: of_kept(score) for name, score in self.joint.items()}
        return ScoredItems(self.embeddings.paired(), self.name, joint)


def check_partners(image_ids: np.ndarray, text_ids: np.ndarray) -> None:
    """Raises ValueError unless image_ids (N,) are different and some are images of captions, text_ids (M,)."""
    if len(np.unique(image_ids)) != len(image_ids):
        raise UserError("image_ids repeat: COCO retrieval has one vector per image")
    if not np.isin(text_ids, image_ids).any():
        raise UserError("no image has a caption: image_ids and caption_image_ids have no id in common")


def _check_widths(vectors: Mapping[str, np.ndarray]) -> None:
    widths = {name: found.shape[1] for name, found in vectors.items()}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{width} ({name})" for name, width in widths.items())
        raise UserError(f"vectors must come from one space, not have the widths {listed}")


def _numbers(values: ArrayLike, name: str) -> np.ndarray:
    found = np.asarray(values)
    if found.dtype.kind not in "fiu":
        raise UserError(f"{name} holds {found.dtype}, not numbers")
    return found


def _unit(vectors: np.ndarray, name: str) -> np.ndarray:
    """(N, D) of any finite size -> float32 of length one.

    Each is divided by its largest number first, in its own type: squares of neither 1e20 in float32 nor 1e200 in
    float64 could be summed.

    Raises:
        ValueError: it is no matrix, or a vector has no direction or is not finite.
    """
    if vectors.ndim != 2 or not vectors.size:
        raise UserError(f"{name} must be a matrix of vectors (N, D) with N and D > 0, not {vectors.shape}")
    wide = vectors.astype(np.result_type(vectors, np.float64))
    largest = np.abs(wide).max(axis=1, keepdims=True)
    broken = np.flatnonzero(~np.isfinite(largest[:, 0]))
    if len(broken):
        raise UserError(f"{name} holds NaN or infinity (first in vector {broken[0]}): the model that made it diverged")
    zero = np.flatnonzero(largest[:, 0] == 0)
    if len(zero):
        raise UserError(f"{name} vector {zero[0]} is zero: it has no direction to compare")
    scaled = wide / largest
    lengths = np.sqrt((scaled * scaled).sum(axis=1, keepdims=True))
    return (scaled / lengths).astype(np.float32)
