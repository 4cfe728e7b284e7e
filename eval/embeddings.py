"""Embeddings that anybody made, in one .npz file, and every measure they allow.

Arrays: `image (N, D)`, `text (M, D)`, `image_ids (N,)`, `caption_image_ids (M,)`; optional `caption_ids (M,)`,
`audio (A, D)` and `audio_image_ids (A,)`. Vectors are made unit length here: similarity is the cosine.
"""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from eval.coco import GroundTruth, check_partners, judge
from eval.matching import HARD_FROM, PairSet, calibrate, hard_pairs, matching, random_pairs
from eval.protocols import Figures, Protocol, retrieval_figures
from eval.ranks import as_vectors
from eval.retrieval import ids_of, retrieval_both, top_k

if TYPE_CHECKING:
    import torch.distributed as dist

REQUIRED = ("image", "text", "image_ids", "caption_image_ids")
VECTORS = {"image": ("image_ids",), "text": ("caption_image_ids", "caption_ids"), "audio": ("audio_image_ids",)}
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
        """From named arrays. Raises ValueError on a missing array, other shapes, ids that are not integers or have no
        partner, NaN."""
        if missing := [name for name in REQUIRED if name not in arrays]:
            raise ValueError(f"embeddings lack {', '.join(missing)}; they hold {', '.join(arrays) or 'nothing'}")
        found: dict[str, Any] = {}
        for name in (name for name in VECTORS if name in arrays):
            found[name] = _unit(_numbers(arrays[name], name), name)
            found |= {i: ids_of(_numbers(arrays[i], i), found[name], i) for i in VECTORS[name] if i in arrays}
        if "audio" in found and "audio_image_ids" not in found:
            raise ValueError("embeddings have audio but no audio_image_ids: which image does each audio belong to?")
        widths = {name: found[name].shape[1] for name in VECTORS if name in found}
        if len(set(widths.values())) > 1:
            raise ValueError(
                "vectors must come from one space, not have the widths "
                + ", ".join(f"{width} ({name})" for name, width in widths.items())
            )
        check_partners(found["image_ids"], found["caption_image_ids"])
        return cls(**found)

    @classmethod
    def load(cls, path: Path | str) -> "Embeddings":
        """From an .npz file, or a run's folder that holds embeddings.npz, read without pickle.

        Raises FileNotFoundError, or ValueError naming the file, on any other file.
        """
        path = Path(path) / "embeddings.npz" if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file of embeddings (.npz)")
        try:
            arrays = np.load(path, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("one array without a name")
            with arrays:
                found = {name: arrays[name] for name in arrays.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is not an .npz file of plain arrays ({error})") from None
        try:
            return cls.of(found)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def cosine(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """The `Scorer` of the vectors alone."""
        return (self.image[images] * self.text[captions]).sum(1)


def evaluate_embeddings(
    embeddings: Embeddings,
    *,
    ground_truth: GroundTruth | None = None,
    dataset: str = "coco",
    split: str = "unstated",
    trained_on: str = "unstated",
    group: "dist.ProcessGroup | None" = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Figures]:
    """Image-text under every COCO protocol that applies (`eval.coco.judge`), and audio with text and with images.

    Keys of the audio clips: `audio_text` and `image_audio`, each on the items that have a partner.
    """
    options: dict[str, Any] = {"group": group, "samples": samples, "seed": seed}
    e = embeddings
    found = judge(
        e.image,
        e.text,
        e.image_ids,
        e.caption_image_ids,
        e.caption_ids,
        ground_truth=ground_truth,
        dataset=dataset,
        split=split,
        trained_on=trained_on,
        **options,
    )
    if e.audio is None or e.audio_image_ids is None:
        return found
    stated = {"dataset": dataset, "split": split, "trained_on": trained_on}
    sound = (e.audio, e.audio_image_ids)
    for names, a, b in (
        (("audio", "text"), sound, (e.text, e.caption_image_ids)),
        (("image", "audio"), (e.image, e.image_ids), sound),
    ):
        found["_".join(names)] = _pair_figures(names, a, b, stated, options)
    return found


def evaluate_matching(
    embeddings: Embeddings,
    validation: Embeddings,
    *,
    joint: Mapping[str, tuple[Scorer, Scorer]] | None = None,
    retriever: Embeddings | None = None,
    retriever_name: str = "",
    ground_truth: GroundTruth | None = None,
    dataset: str = "coco",
    split: str = "unstated",
    validation_split: str = "validation",
    trained_on: str = "unstated",
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Figures]:
    """Balanced matching: `random/cosine` and, with a frozen retriever's embeddings of the same items, `hard/cosine`.

    joint: further scores by name, of the pairs of `embeddings` and of `validation`; they add `random/<name>` and so on
    for the same pairs. Threshold and calibration are fitted on `validation` with random negatives. Known matches of the
    ground truth are never used as negatives. Raises ValueError when the retriever's items are others.
    """
    e, v = embeddings, validation
    known: set[tuple[int, int]] = set()
    if ground_truth is not None:
        if e.caption_ids is None:
            raise ValueError("to leave known matches out of the negatives, embeddings need `caption_ids`")
        known = ground_truth.positives(e.caption_ids, e.image_ids)
    more: dict[str, Any] = {"known": known, "caption_ids": e.caption_ids, "seed": seed}
    chosen = {"random": random_pairs(e.image_ids, e.caption_image_ids, **more)}
    if retriever is not None:
        same = np.array_equal(retriever.image_ids, e.image_ids)
        if not same or not np.array_equal(retriever.caption_image_ids, e.caption_image_ids):
            raise ValueError("the retriever's embeddings must be of the same images and captions in the same order")
        shortlist = top_k(retriever.text, retriever.image, min(HARD_FROM, len(e.image)))[1].numpy()
        chosen["hard"] = hard_pairs(e.image_ids, e.caption_image_ids, shortlist, retriever_name, **more)
    fitting = random_pairs(v.image_ids, v.caption_image_ids, seed=seed)
    truth = "+".join(["original", *(ground_truth.extra if ground_truth else ())])
    found = {}
    for name, (score, score_validation) in {"cosine": (e.cosine, v.cosine), **(joint or {})}.items():
        fitted = calibrate(*_scores(score_validation, fitting))
        for kind, pairs in chosen.items():
            result = matching(*_scores(score, pairs), pairs, fitted, samples=samples, seed=seed)
            protocol = Protocol.of_ids(
                e.image_ids,
                e.caption_image_ids[pairs.text],
                dataset=dataset,
                split=split,
                trained_on=trained_on,
                ground_truth=truth,
                recall="none",
                task=f"binary matching by {name}, as many non-matches"
                f" ({pairs.negatives}) as matches, threshold fixed on {validation_split}",
            )
            found[f"{kind}/{name}"] = Figures(protocol, result.metrics(), result.intervals)
    return found


def _scores(score: Scorer, pairs: PairSet) -> tuple[np.ndarray, np.ndarray]:
    """(P,) scores of the matches and of the non-matches."""
    return score(pairs.image, pairs.text), score(pairs.negative, pairs.text)


def _pair_figures(
    names: tuple[str, str],
    a: tuple[np.ndarray, np.ndarray],
    b: tuple[np.ndarray, np.ndarray],
    stated: dict[str, str],
    options: dict[str, Any],
) -> Figures:
    """Both directions between two modalities on the items that have a partner."""
    keep_a, keep_b = np.isin(a[1], b[1]), np.isin(b[1], a[1])
    if not keep_a.any():
        raise ValueError(f"no {names[0]} shares an image with any {names[1]}: their image ids differ")
    of_a, of_b = a[1][keep_a], b[1][keep_b]
    forward, backward = retrieval_both(a[0][keep_a], b[0][keep_b], of_a, of_b, group=options["group"])
    protocol = replace(Protocol.of_ids(np.unique(of_a), of_b, **stated), ground_truth=f"{names[0]}-{names[1]}")
    directions = {"_to_".join(names): (forward, of_a), "_to_".join(names[::-1]): (backward, of_b)}
    return retrieval_figures(protocol, directions, samples=options["samples"], seed=options["seed"])


def _numbers(values: ArrayLike, name: str) -> np.ndarray:
    found = np.asarray(values)
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{name} holds {found.dtype}, not numbers")
    return found


def _unit(vectors: np.ndarray, name: str) -> np.ndarray:
    found = as_vectors(vectors, name)
    norm = found.norm(dim=1, keepdim=True)
    if bool((norm == 0).any()):
        raise ValueError(f"{name} vector {int((norm[:, 0] == 0).nonzero()[0])} is zero: it has no direction to compare")
    return (found / norm).numpy()
