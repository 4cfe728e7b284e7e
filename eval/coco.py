"""MS-COCO image-text retrieval under every published protocol, from one pass over the scores.

5K with all captions (25,010 on the Karpathy test split) and with five per image (25,000); 1K as the mean of five
disjoint folds (Karpathy and Fei-Fei 2015; VSE++); CxC any-hit recalls (Parekh et al. 2021); ECCV Caption mAP@R,
R-Precision and R@1 (Chun et al. 2022); PMRP (Chun et al. 2021). The last three use the 25,000-caption gallery, as the
`eccv_caption` package does. PMRP's plausible matches are computed from COCO's instance annotations and are not among
ECCV Caption's files: it is evaluated only where `pm_image_to_caption.json` and `pm_caption_to_image.json` lie beside
them (the package calls them so), and has been checked by hand-made cases alone.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from eval.measures import Placed, hit_at, map_at_r, r_precision
from eval.protocols import Figures, Protocol, mean_figures, retrieval_figures
from eval.ranks import PairCounts, count_pairs
from eval.retrieval import RECALL_AT, ids_of, matching_pairs, result_of

if TYPE_CHECKING:
    import torch.distributed as dist

FOLDS, FOLD_IMAGES, PER_IMAGE = 5, 1000, 5


@dataclass(frozen=True)
class Matches:
    """Extra matches by id: image id -> caption ids, and caption id -> image ids (the two are not transposes)."""

    image_to_text: Mapping[int, list[int]]
    text_to_image: Mapping[int, list[int]]


@dataclass(frozen=True)
class GroundTruth:
    """The Karpathy test split by COCO's own ids: captions (25000,) in fold order, the image of each, extra matches."""

    captions: np.ndarray
    images: np.ndarray
    extra: dict[str, Matches]

    @classmethod
    def load(cls, folder: Path | str) -> "GroundTruth":
        """From a folder that holds ECCV Caption's files (or has them in `eccv_caption/`); `pm_*.json` are optional.

        Raises FileNotFoundError that names the missing file.
        """
        folder = Path(folder)
        folder = folder / "eccv_caption" if (folder / "eccv_caption").is_dir() else folder
        ids = folder / "coco_test_ids.npy"
        if not ids.is_file():
            raise FileNotFoundError(f"{ids}: no ground truth there; point at the folder of ECCV Caption's data files")
        captions = np.load(ids, allow_pickle=False).astype(np.int64)
        image_of = _read(folder / "original_caption_to_image.json")
        names = {"cxc": "cxc", "eccv": "eccv"}
        if (folder / "pm_image_to_caption.json").is_file():
            names["pmrp"] = "pm"
        extra = {
            name: Matches(
                _read(folder / f"{stem}_image_to_caption.json"), _read(folder / f"{stem}_caption_to_image.json")
            )
            for name, stem in names.items()
        }
        return cls(captions, np.array([image_of[int(c)][0] for c in captions]), extra)

    def positives(self, caption_ids: np.ndarray, image_ids: np.ndarray) -> set[tuple[int, int]]:
        """Every (image id, caption id) that anybody calls a match: what a hard negative must not be."""
        found = set(zip(self.images.tolist(), self.captions.tolist(), strict=True))
        for matches in self.extra.values():
            found |= {(i, c) for i, captions in matches.image_to_text.items() for c in captions}
            found |= {(i, c) for c, images in matches.text_to_image.items() for i in images}
        keep_image, keep_caption = set(image_ids.tolist()), set(caption_ids.tolist())
        return {(i, c) for i, c in found if i in keep_image and c in keep_caption}


def judge(
    image: Tensor | ArrayLike,
    text: Tensor | ArrayLike,
    image_ids: ArrayLike,
    caption_image_ids: ArrayLike,
    caption_ids: ArrayLike | None = None,
    *,
    ground_truth: GroundTruth | None = None,
    dataset: str = "coco",
    split: str = "unstated",
    trained_on: str = "unstated",
    group: "dist.ProcessGroup | None" = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Figures]:
    """Evaluate unit vectors image (N, D) and text (M, D) under every protocol that their sizes and ids allow.

    Keys: `all`; `five` when some image has more than five captions; `folds` when there are 5,000 images; `cxc`, `eccv`,
    `pmrp` when `ground_truth` is given and `caption_ids` (M,) are COCO's. Folds are in the order of the split's list
    where the ground truth knows it, else in the order given. Raises ValueError on ids that do not fit.
    """
    image_ids = ids_of(np.asarray(image_ids), image, "image_ids")
    text_ids = ids_of(np.asarray(caption_image_ids), text, "caption_image_ids")
    check_partners(image_ids, text_ids)
    known = None if caption_ids is None else ids_of(np.asarray(caption_ids), text, "caption_ids")
    if ground_truth is not None:
        _check_split(ground_truth, image_ids, known)
        split = "karpathy-test"
    stated = {"dataset": dataset, "split": split, "trained_on": trained_on}
    layout = _Layout.of(image_ids, text_ids, known, ground_truth)
    pairs, member = _union(layout, image_ids, text_ids, known, ground_truth)
    counts = count_pairs(image, text, pairs, row_part=layout.image_fold, column_part=layout.text_part, group=group)
    assert counts.by_row is not None and counts.by_column is not None
    view = _View(pairs, counts.by_row, counts.by_column, image_ids, text_ids, layout)
    options: dict[str, Any] = {"samples": samples, "seed": seed}
    found = {"all": view.recalls(member["original"], stated, options)}
    five = replace(view, five=True)
    if layout.extra.any():
        found["five"] = five.recalls(member["original"], stated, options)
    if layout.folds > 1:
        found["folds"] = replace(five, in_fold=True).recalls(member["original"], stated, options)
    for name in ground_truth.extra if ground_truth else {}:
        found[name] = five.extra_truth(name, member, stated, options)
    return found


def check_partners(image_ids: np.ndarray, text_ids: np.ndarray) -> None:
    """Raises ValueError unless image_ids (N,) are different and the images of captions, text_ids (M,), are the same."""
    if len(np.unique(image_ids)) != len(image_ids):
        raise ValueError("image_ids repeat: COCO retrieval has one vector per image")
    if len(alone := np.setxor1d(text_ids, image_ids)):
        raise ValueError(
            "every image needs a caption and every caption its image: image_ids and caption_image_ids"
            f" differ in {len(alone)} images (the first is {alone[0]})"
        )


@dataclass(frozen=True)
class _Layout:
    """Which fold every image and caption is in, and which captions are beyond five per image."""

    image_fold: np.ndarray
    text_fold: np.ndarray
    extra: np.ndarray
    folds: int

    @property
    def text_part(self) -> np.ndarray:
        return self.text_fold + self.folds * self.extra

    @classmethod
    def of(
        cls, image_ids: np.ndarray, text_ids: np.ndarray, caption_ids: np.ndarray | None, truth: GroundTruth | None
    ) -> "_Layout":
        order = image_ids if truth is None else truth.images[np.sort(np.unique(truth.images, return_index=True)[1])]
        folds = FOLDS if len(image_ids) == FOLDS * FOLD_IMAGES else 1
        sorter = np.argsort(order)
        fold_of = sorter // FOLD_IMAGES if folds > 1 else np.zeros(len(order), np.int64)
        image_fold = fold_of[np.searchsorted(order[sorter], image_ids)]
        text_fold = fold_of[np.minimum(np.searchsorted(order[sorter], text_ids), len(order) - 1)]
        extra = (
            _beyond(text_ids, PER_IMAGE)
            if truth is None or caption_ids is None
            else ~np.isin(caption_ids, truth.captions)
        )
        return cls(image_fold, text_fold, extra, folds)


@dataclass(frozen=True)
class _View:
    """Counted pairs seen under one protocol: with five captions per image or all, across the split or within a fold."""

    pairs: np.ndarray
    rows: PairCounts
    columns: PairCounts
    image_ids: np.ndarray
    text_ids: np.ndarray
    layout: _Layout
    five: bool = False
    in_fold: bool = False

    def placed(self, chosen: np.ndarray, by_row: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Query positions of the chosen pairs and what stands above and level in this view's gallery."""
        pairs, counts = self.pairs[chosen], self.rows if by_row else self.columns
        fold = self.layout.image_fold[pairs[:, 0]]
        folds = self.layout.folds
        parts = range(folds if self.five or not by_row else counts.greater.shape[1])
        keep = [(fold == part % folds) if self.in_fold else np.ones(len(pairs), bool) for part in parts]
        greater = sum((counts.greater[chosen, part] * on for part, on in zip(parts, keep, strict=True)), np.int64(0))
        tied = sum((counts.tied[chosen, part] * on for part, on in zip(parts, keep, strict=True)), np.int64(0))
        return pairs[:, 0 if by_row else 1], np.asarray(greater), np.asarray(tied)

    def protocol(self, stated: dict[str, str], **more: Any) -> Protocol:
        text_ids = self.text_ids[~self.layout.extra] if self.five else self.text_ids
        whole = Protocol.of_ids(self.image_ids, text_ids, **stated, **more)
        folds = self.layout.folds
        if not self.in_fold:
            return whole
        return replace(whole, folds=folds, images=whole.images // folds, captions=whole.captions // folds)

    def recalls(self, original: np.ndarray, stated: dict[str, str], options: dict[str, Any]) -> Figures:
        chosen = np.flatnonzero(original & ~self.layout.extra[self.pairs[:, 1]] if self.five else original)
        directions, fold = {}, {}
        for name, by_row in (("image_to_text", True), ("text_to_image", False)):
            query, greater, tied = self.placed(chosen, by_row)
            items, position = np.unique(query, return_inverse=True)
            ids = self.image_ids[items] if by_row else self.text_ids[items]
            directions[name] = (result_of(position, greater, tied, ids), ids)
            fold[name] = (self.layout.image_fold if by_row else self.layout.text_fold)[items]
        return retrieval_figures(self.protocol(stated), directions, fold=fold if self.in_fold else None, **options)

    def extra_truth(
        self, name: str, member: dict[str, np.ndarray], stated: dict[str, str], options: dict[str, Any]
    ) -> Figures:
        values, images = {}, {}
        for direction, by_row in (("image_to_text", True), ("text_to_image", False)):
            query, greater, tied = self.placed(np.flatnonzero(member[f"{name}/{direction}"]), by_row)
            items, position = np.unique(query, return_inverse=True)
            placed = Placed.of(position, greater, tied, len(items))
            image = self.image_ids[items] if by_row else self.text_ids[items]
            for measure, value in _extra_measures(name, placed):
                values[f"{direction}/{measure}"], images[f"{direction}/{measure}"] = 100 * value, image
        return mean_figures(self.protocol(stated, ground_truth=name), values, images, **options)


def _extra_measures(name: str, placed: Placed) -> Iterable[tuple[str, np.ndarray]]:
    if name == "cxc":
        return [(f"R@{k}", hit_at(placed, k)) for k in RECALL_AT]
    if name == "pmrp":
        return [("r_precision", r_precision(placed))]
    return [("map_at_r", map_at_r(placed)), ("r_precision", r_precision(placed)), ("R@1", hit_at(placed, 1))]


def _union(
    layout: _Layout,
    image_ids: np.ndarray,
    text_ids: np.ndarray,
    caption_ids: np.ndarray | None,
    truth: GroundTruth | None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """All pairs that any ground truth needs (P, 2), and for each ground truth which of them are its own (P,) bool."""
    lists = {"original": matching_pairs(image_ids, text_ids)}
    for name, matches in truth.extra.items() if truth else ():
        assert caption_ids is not None  # _check_split
        lists[f"{name}/image_to_text"] = _positions(matches.image_to_text, image_ids, caption_ids)
        lists[f"{name}/text_to_image"] = _positions(matches.text_to_image, caption_ids, image_ids)[:, ::-1]
    keys = {name: found[:, 0] * len(text_ids) + found[:, 1] for name, found in lists.items()}
    union = np.unique(np.concatenate(list(keys.values())))
    pairs = np.stack([union // len(text_ids), union % len(text_ids)], 1)
    return pairs, {name: np.isin(union, key) for name, key in keys.items()}


def _positions(matches: Mapping[int, list[int]], query_ids: np.ndarray, gallery_ids: np.ndarray) -> np.ndarray:
    """(P, 2) positions of id -> ids matches."""
    query = np.repeat(np.fromiter(matches, np.int64), [len(v) for v in matches.values()])
    match = np.fromiter((m for found in matches.values() for m in found), np.int64)
    sides = []
    for ids, wanted in ((query_ids, query), (gallery_ids, match)):
        order = np.argsort(ids)
        sides.append(order[np.searchsorted(ids[order], wanted)])
    return np.stack(sides, 1)


def _beyond(ids: np.ndarray, limit: int) -> np.ndarray:
    """(M,) bool: items that are not among the first `limit` of their id."""
    order = np.argsort(ids, kind="stable")
    values = ids[order]
    rank = np.arange(len(ids)) - np.searchsorted(values, values, "left")
    beyond = np.empty(len(ids), dtype=bool)
    beyond[order] = rank >= limit
    return beyond


def _check_split(truth: GroundTruth, image_ids: np.ndarray, caption_ids: np.ndarray | None) -> None:
    if set(image_ids.tolist()) != set(truth.images.tolist()):
        raise ValueError(
            f"the ground truth is for the {len(set(truth.images.tolist())):,} images of the Karpathy test"
            " split by COCO id; these embeddings are of other images: leave the ground truth out"
        )
    if caption_ids is None or not np.isin(truth.captions, caption_ids).all():
        raise ValueError("CxC and ECCV name captions by COCO id: embeddings need `caption_ids` with all 25,000 of them")


def _read(path: Path) -> dict[int, list[int]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this ground-truth file is missing")
    try:
        return {int(key): [int(v) for v in value] for key, value in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not map ids to lists of ids: {error}") from None
