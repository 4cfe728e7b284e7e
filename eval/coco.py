"""MS-COCO image-text retrieval under every published protocol, from one pass over the scores.

5K with all captions (25,010 on the Karpathy test split) and with five per image (25,000); 1K as the mean of five
disjoint folds (Karpathy and Fei-Fei 2015; VSE++); CxC any-hit recalls (Parekh et al. 2021); ECCV Caption mAP@R,
R-Precision and R@1 (Chun et al. 2022); PMRP (Chun et al. 2021). The last three use the 25,000-caption gallery, as the
`eccv_caption` package does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from eval.embeddings import Embeddings
from eval.figures import Direction, Figures, QueryValues, mean_figures, retrieval_figures
from eval.ground_truth import GroundTruth
from eval.intervals import DEFAULT_BOOTSTRAP, Bootstrap
from eval.measures import Placed, hit_at, map_at_r, r_precision
from eval.protocols import Protocol, Stated
from eval.ranks import Counts, count_pairs
from eval.retrieval import RECALL_AT, matching_pairs, result_of, retrieval_both
from kernels.collectives import Group
from kernels.errors import UserError
from kernels.timing import CPU

FOLDS = 5
FOLD_IMAGES = 1000
PER_IMAGE = 5
DIRECTIONS = ("image_to_text", "text_to_image")
PROTOCOLS = ("all", "five", "folds", "cxc", "eccv", "pmrp", "audio_text", "image_audio")
"""Names of what `evaluate_embeddings` finds."""


def evaluate_embeddings(
    items: Embeddings,
    stated: Stated,
    *,
    ground_truth: GroundTruth | None = None,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
    group: Group = None,
    device: torch.device = CPU,
) -> dict[str, Figures]:
    """Image-text under every COCO protocol that applies (`evaluate_coco`), and audio with text and with images.

    Args:
        items: the embeddings.
        stated: for the protocols.
        ground_truth: as `evaluate_coco`'s.
        bootstrap: of the intervals.
        group: ranks that share the work, as in `eval.retrieval.retrieval`.
        device: where scores are made and compared.

    Returns:
        `evaluate_coco`'s figures and, with audio, `audio_text` and `image_audio`, each on the items that have a
        partner.
    """
    found = evaluate_coco(
        items.paired(), stated, ground_truth=ground_truth, bootstrap=bootstrap, group=group, device=device
    )
    if items.audio is None or items.audio_image_ids is None:
        return found
    image = _Modality("image", items.image, items.image_ids)
    audio = _Modality("audio", items.audio, items.audio_image_ids)
    text = _Modality("text", items.text, items.caption_image_ids)
    found["audio_text"] = _pair_figures(audio, text, stated, bootstrap, group, device)
    found["image_audio"] = _pair_figures(image, audio, stated, bootstrap, group, device)
    return found


def evaluate_coco(
    items: Embeddings,
    stated: Stated,
    *,
    ground_truth: GroundTruth | None = None,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
    group: Group = None,
    device: torch.device = CPU,
) -> dict[str, Figures]:
    """Images and captions under every protocol that their sizes and ids allow.

    Args:
        items: the embeddings, in which every image has a caption and every caption its image. Folds are in the order
            of the split's list where the ground truth knows it, else in the order given.
        stated: for the protocols.
        ground_truth: of the Karpathy test split, whose ids the items must have.
        bootstrap: of the intervals.
        group: ranks that share the work, as in `eval.retrieval.retrieval`.
        device: where scores are made and compared.

    Returns:
        `all`; `five` when some image has more than five captions; `folds` when there are 5,000 images; `cxc`, `eccv`,
        `pmrp` when there is a ground truth.

    Raises:
        ValueError: on ids that do not fit the ground truth.
    """
    if ground_truth is not None:
        ground_truth.check(items.image_ids, items.caption_ids)
        stated = replace(stated, split="karpathy-test")
    layout = _Layout.of(items, ground_truth)
    pairs = _Pairs.of(items, ground_truth)
    image, text = _on(device, items.image, items.text)
    counts = count_pairs(
        image, text, pairs.pairs, row_part=layout.image_fold, column_part=layout.text_part, group=group
    )
    every = _View(items, layout, pairs, counts)
    five = replace(every, five=True)
    found = {"all": every.recalls(stated, bootstrap)}
    if layout.extra.any():
        found["five"] = five.recalls(stated, bootstrap)
    if layout.folds > 1:
        found["folds"] = replace(five, in_fold=True).recalls(stated, bootstrap)
    for name in ground_truth.extra if ground_truth else ():
        found[name] = five.extra_truth(name, stated, bootstrap)
    return found


@dataclass(frozen=True)
class _Modality:
    """One side of a retrieval."""

    name: str
    vectors: np.ndarray
    """(N, D)."""
    ids: np.ndarray
    """(N,) the image of each."""

    def with_partner(self, other: "_Modality") -> "_Modality":
        """The items whose image also occurs in the other modality."""
        keep = np.isin(self.ids, other.ids)
        return _Modality(self.name, self.vectors[keep], self.ids[keep])


def _on(device: torch.device, *vectors: np.ndarray) -> list[Tensor]:
    """Arrays (N, D) as tensors on a device."""
    return [torch.as_tensor(each).to(device) for each in vectors]


def _pair_figures(
    one: _Modality, other: _Modality, stated: Stated, bootstrap: Bootstrap, group: Group, device: torch.device
) -> Figures:
    """Both directions between two modalities on the items that have a partner."""
    a = one.with_partner(other)
    b = other.with_partner(one)
    if not len(a.ids):
        raise UserError(f"no {a.name} shares an image with any {b.name}: their image ids differ")
    x, y = _on(device, a.vectors, b.vectors)
    forward, backward = retrieval_both(x, y, a.ids, b.ids, group=group)
    protocol = Protocol.of_ids(np.unique(a.ids), b.ids, stated, ground_truth=f"{a.name}-{b.name}")
    directions = {
        f"{a.name}_to_{b.name}": Direction(forward, a.ids),
        f"{b.name}_to_{a.name}": Direction(backward, b.ids),
    }
    return retrieval_figures(protocol, directions, bootstrap)


@dataclass(frozen=True)
class _Layout:
    """Which fold every image and caption is in, and which captions are beyond five per image."""

    image_fold: np.ndarray
    """(N,)."""
    text_fold: np.ndarray
    """(M,)."""
    extra: np.ndarray
    """(M,) bool: captions that only the protocol with all captions keeps."""
    folds: int

    @property
    def text_part(self) -> np.ndarray:
        """(M,): the fold, or folds + the fold for the captions beyond five."""
        return self.text_fold + self.folds * self.extra

    @classmethod
    def of(cls, items: Embeddings, truth: GroundTruth | None) -> "_Layout":
        """Folds are a thousand images each, in the order of the ground truth, or as they come."""
        order = items.image_ids if truth is None else truth.fold_order()
        sorter = np.argsort(order)
        in_order = order[sorter]
        folds = 1
        fold_of = np.zeros(len(order), np.int64)
        if len(items.image_ids) == FOLDS * FOLD_IMAGES:
            folds = FOLDS
            fold_of = sorter // FOLD_IMAGES
        image_at = np.searchsorted(in_order, items.image_ids)
        text_at = np.searchsorted(in_order, items.caption_image_ids)
        if truth is None or items.caption_ids is None:
            extra = _beyond(items.caption_image_ids, PER_IMAGE)
        else:
            extra = ~np.isin(items.caption_ids, truth.captions)
        return cls(fold_of[image_at], fold_of[text_at], extra, folds)


@dataclass(frozen=True)
class _Pairs:
    """All pairs that any ground truth needs."""

    pairs: np.ndarray
    """(P, 2) positions in the images and in the captions."""
    member: dict[str, np.ndarray]
    """`original`, or `<ground truth>/<direction>` -> (P,) bool: the pairs that are its matches."""

    @property
    def images(self) -> np.ndarray:
        """(P,)."""
        return self.pairs[:, 0]

    @property
    def captions(self) -> np.ndarray:
        """(P,)."""
        return self.pairs[:, 1]

    @classmethod
    def of(cls, items: Embeddings, truth: GroundTruth | None) -> "_Pairs":
        lists = {"original": matching_pairs(items.image_ids, items.caption_image_ids)}
        for name, matches in truth.extra.items() if truth else ():
            assert items.caption_ids is not None  # GroundTruth.check
            to_text = _positions(matches.image_to_text, items.image_ids, items.caption_ids)
            to_image = _positions(matches.text_to_image, items.caption_ids, items.image_ids)
            lists[f"{name}/image_to_text"] = to_text
            lists[f"{name}/text_to_image"] = to_image[:, ::-1]
        captions = len(items.caption_image_ids)
        # A pair is one number, so that lists of pairs can be merged and looked up.
        numbers = {name: found[:, 0] * captions + found[:, 1] for name, found in lists.items()}
        union = np.unique(np.concatenate(list(numbers.values())))
        pairs = np.stack([union // captions, union % captions], 1)
        member = {name: np.isin(union, own) for name, own in numbers.items()}
        return cls(pairs, member)


@dataclass(frozen=True)
class _Standing:
    """C pairs in the rankings of their Q queries."""

    asked: np.ndarray
    """(Q,) positions of the queries in the images or in the captions."""
    query: np.ndarray
    """(C,) in 0 .. Q-1."""
    greater: np.ndarray
    """(C,) items above."""
    tied: np.ndarray
    """(C,) items level with it, itself included."""


@dataclass(frozen=True)
class _View:
    """Counted pairs seen under one protocol: with five captions per image or all, across the split or within a fold."""

    items: Embeddings
    layout: _Layout
    pairs: _Pairs
    counts: Counts
    five: bool = False
    in_fold: bool = False

    def recalls(self, stated: Stated, bootstrap: Bootstrap) -> Figures:
        """The retrieval figures of the original matches."""
        original = self.pairs.member["original"]
        if self.five:
            beyond_five = self.layout.extra[self.pairs.captions]
            original = original & ~beyond_five
        chosen = np.flatnonzero(original)
        directions = {}
        for name in DIRECTIONS:
            standing = self._standing(chosen, name)
            ids = self._ids(name)[standing.asked]
            result = result_of(standing.query, standing.greater, standing.tied, ids)
            fold = self._folds(name)[standing.asked] if self.in_fold else None
            directions[name] = Direction(result, ids, fold)
        return retrieval_figures(self._protocol(stated), directions, bootstrap)

    def extra_truth(self, name: str, stated: Stated, bootstrap: Bootstrap) -> Figures:
        """The measures that a ground truth defines, of its own matches."""
        groups = []
        for direction in DIRECTIONS:
            matches = self.pairs.member[f"{name}/{direction}"]
            standing = self._standing(np.flatnonzero(matches), direction)
            placed = Placed.of(standing.query, standing.greater, standing.tied, len(standing.asked))
            values = {}
            for measure, value in _extra_measures(name, placed).items():
                values[f"{direction}/{measure}"] = 100 * value
            ids = self._ids(direction)[standing.asked]
            groups.append(QueryValues(ids, values))
        return mean_figures(self._protocol(stated, ground_truth=name), groups, {}, bootstrap)

    def _standing(self, chosen: np.ndarray, direction: str) -> "_Standing":
        """Where pairs stand in this view's gallery.

        A gallery of captions is counted in parts: those of each fold, then those beyond five of each fold.

        Args:
            chosen: (C,) positions in the pairs.
            direction: `image_to_text` or `text_to_image`.
        """
        by_row = direction == "image_to_text"
        counts = self.counts.by_row if by_row else self.counts.by_column
        assert counts is not None
        images = self.pairs.images[chosen]
        fold = self.layout.image_fold[images]
        folds = self.layout.folds
        parts = counts.greater.shape[1] if by_row and not self.five else folds
        greater = np.zeros(len(chosen), np.int64)
        tied = np.zeros(len(chosen), np.int64)
        for part in range(parts):
            counted = np.ones(len(chosen), bool)
            if self.in_fold:
                counted = fold == part % folds
            greater += counts.greater[chosen, part] * counted
            tied += counts.tied[chosen, part] * counted
        queries = images if by_row else self.pairs.captions[chosen]
        asked, query = np.unique(queries, return_inverse=True)
        return _Standing(asked, query, greater, tied)

    def _ids(self, direction: str) -> np.ndarray:
        """The image of each query."""
        return self.items.image_ids if direction == "image_to_text" else self.items.caption_image_ids

    def _folds(self, direction: str) -> np.ndarray:
        """The fold of each query."""
        return self.layout.image_fold if direction == "image_to_text" else self.layout.text_fold

    def _protocol(self, stated: Stated, ground_truth: str = "original") -> Protocol:
        text_ids = self.items.caption_image_ids
        if self.five:
            text_ids = text_ids[~self.layout.extra]
        whole = Protocol.of_ids(self.items.image_ids, text_ids, stated, ground_truth=ground_truth)
        if not self.in_fold:
            return whole
        folds = self.layout.folds
        images = whole.images // folds
        captions = whole.captions // folds
        return replace(whole, folds=folds, images=images, captions=captions)


def _extra_measures(name: str, placed: Placed) -> dict[str, np.ndarray]:
    """What a ground truth is measured by: name -> (Q,)."""
    if name == "cxc":
        return {f"R@{k}": hit_at(placed, k) for k in RECALL_AT}
    if name == "pmrp":
        return {"r_precision": r_precision(placed)}
    return {"map_at_r": map_at_r(placed), "r_precision": r_precision(placed), "R@1": hit_at(placed, 1)}


def _positions(matches: Mapping[int, list[int]], query_ids: np.ndarray, gallery_ids: np.ndarray) -> np.ndarray:
    """Matches by id as pairs of positions.

    Args:
        matches: id of a query -> ids in the gallery.
        query_ids: (Q,).
        gallery_ids: (G,).

    Returns:
        (P, 2) positions in the queries and in the gallery.
    """
    queries: list[int] = []
    found: list[int] = []
    for query, several in matches.items():
        queries += [query] * len(several)
        found += several
    sides = []
    for ids, listed in ((query_ids, queries), (gallery_ids, found)):
        wanted = np.array(listed, np.int64)
        order = np.argsort(ids)
        sides.append(order[np.searchsorted(ids[order], wanted)])
    return np.stack(sides, 1)


def _beyond(ids: np.ndarray, limit: int) -> np.ndarray:
    """(M,) bool: items that are not among the first `limit` of their id."""
    order = np.argsort(ids, kind="stable")
    in_order = ids[order]
    first = np.searchsorted(in_order, in_order, "left")
    rank = np.arange(len(ids)) - first
    beyond = np.empty(len(ids), dtype=bool)
    beyond[order] = rank >= limit
    return beyond
