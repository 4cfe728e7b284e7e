"""What a number means: the protocol under which it was measured.

Published COCO numbers differ silently in the captions they keep (25,000 or 25,010), in folds (1K is the mean of five
disjoint thousands, not one sample), in what counts as found (any of five captions, or the share of them), in whether a
joint head re-ranked a shortlist and how deep, and in whether the model was trained on the set. All is stated here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from kernels.errors import UserError

ITEMS = {"image": "images", "audio": "audio clips", "text": "captions"}
"""What the items of a modality are called."""
COUNTED = ("samples", "present", "gallery")
"""Fields that not every protocol has: older ones have none, and a model without audio counts no audio."""
RANDOM_WEIGHTS = "RANDOM WEIGHTS"
"""What a model was trained on that was not trained: nobody may take its figures for a model's."""


@dataclass(frozen=True)
class Stated:
    """What no evaluation can count and its caller states, for the protocol."""

    dataset: str = "unstated"
    """As the protocol's."""
    split: str = "unstated"
    """As the protocol's."""
    trained_on: str = "unstated"
    """As the protocol's."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """As the protocol's."""
    samples: int = 0
    """As the protocol's."""
    present: Mapping[str, int] = field(default_factory=dict)
    """As the protocol's."""


@dataclass(frozen=True)
class Protocol:
    """The protocol every figure carries. Two figures compare only when their protocols are equal, but for what the
    trunks had seen, which is a property of the model."""

    dataset: str
    """Which collection, for example `coco` or `flickr8k`."""
    split: str
    """Which part of it, for example `karpathy-test`, `val2017`."""
    images: int
    """Images in the gallery of image-text retrieval, of one fold where there are folds."""
    captions: int
    """Captions in the gallery of image-text retrieval, of one fold where there are folds."""
    captions_per_image: str
    """`5`, or `5-7` where images differ."""
    recall: str = "any-hit"
    """`any-hit`: one match in the top k is enough; `true`: the share of the matches that is in the top k; `none` where
    nothing is retrieved."""
    rerank_depth: int = 0
    """How many candidates a joint head re-scored; 0 is the dual encoder alone."""
    trained_on: str = "unstated"
    """`zero-shot`, `trained on <dataset>`, `zero-shot, trained on <dataset>`, `RANDOM WEIGHTS`, or `unstated`;
    of a run also how many of the images it has seen captions of."""
    folds: int = 1
    """Disjoint folds whose mean is the figure."""
    ground_truth: str = "original"
    """Whose matches: `original` pairs, `cxc`, `eccv`, `pmrp`."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Samples that could not be read, by reason."""
    task: str = "retrieval"
    """`retrieval`, or what else was asked: which pairs or choices, scored how."""
    samples: int = 0
    """Samples of the split, whatever they lack; 0 where they were not counted."""
    present: Mapping[str, int] = field(default_factory=dict)
    """Of the samples those whose image, audio or captions were evaluated, by modality; empty where not counted."""
    gallery: Mapping[str, int] = field(default_factory=dict)
    """Items among which each direction retrieves, such as `audio_to_text`; empty where the sizes above say it."""
    pretraining: str = "not stated"
    """What the model's trunks had seen before it was trained."""

    @property
    def name(self) -> str:
        """`<dataset>/<split>`."""
        return f"{self.dataset}/{self.split}"

    @property
    def zero_shot(self) -> bool:
        """Whether the model was not trained on this dataset."""
        return self.trained_on.startswith("zero-shot")

    def __str__(self) -> str:
        count = sum(self.skipped.values())
        skipped = f", {count:,} skipped" if count else ""
        if self.task != "retrieval":
            return (
                f"{self.dataset} {self.split}: {self.task}; {self.images:,} images or audio clips x {self.captions:,}"
                f" captions{skipped}, {self.trained_on}"
            )
        folds = f" in {self.folds} folds of" if self.folds > 1 else ""
        depth = f"re-ranked to {self.rerank_depth}" if self.rerank_depth else "not re-ranked"
        return (
            f"{self.dataset} {self.split}{folds} {self.sizes()}, {self.ground_truth} matches, {self.recall} recall,"
            f" {depth}{skipped}, {self.trained_on}"
        )

    def sizes(self) -> str:
        """The galleries in words: images and captions, or whatever there is instead of either."""
        if (self.images and self.captions) or not self.gallery:
            return f"{self.images:,} images x {self.captions:,} captions ({self.captions_per_image} each)"
        counts = []
        for direction, count in self.gallery.items():
            _, _, modality = direction.partition("_to_")
            counts.append(f"{count:,} {ITEMS[modality]}")
        return " x ".join(counts)

    def differences(self, other: "Protocol") -> list[str]:
        """`field: mine != theirs` for every field but `pretraining` in which two protocols differ.

        What only one protocol has counted does not differ.
        """
        found = []
        for each in fields(self):
            if each.name == "pretraining":
                continue
            mine = getattr(self, each.name)
            theirs = getattr(other, each.name)
            if each.name in COUNTED:
                mine, theirs = _both_counted(mine, theirs)
            if mine != theirs:
                found.append(f"{each.name}: {mine} != {theirs}")
        return found

    @classmethod
    def of_dict(cls, protocol: Mapping[str, Any]) -> "Protocol":
        """What `asdict` made.

        Raises:
            ValueError: naming the fields that are missing or unknown.
        """
        names = {each.name for each in fields(cls)}
        if wrong := names ^ protocol.keys():
            raise UserError(
                f"a protocol has the fields {sorted(names)}; unknown or missing here: {', '.join(sorted(wrong))}"
            )
        return cls(**protocol)

    @classmethod
    def of_ids(cls, image_ids: np.ndarray, caption_image_ids: np.ndarray, stated: Stated, **more: Any) -> "Protocol":
        """Sizes counted from ids, the rest as stated.

        Args:
            image_ids: (N,) different ids.
            caption_image_ids: (M,) the image of each caption.
            stated: what cannot be counted.
            more: further fields.
        """
        _, counts = np.unique(caption_image_ids, return_counts=True)
        return cls(
            dataset=stated.dataset,
            split=stated.split,
            trained_on=stated.trained_on,
            skipped=dict(stated.skipped),
            samples=stated.samples,
            present=dict(stated.present),
            images=len(image_ids),
            captions=len(caption_image_ids),
            captions_per_image=_span(counts),
            **more,
        )


def _both_counted(mine: Any, theirs: Any) -> tuple[Any, Any]:
    """Two counts, or two maps of counts without the names that only one of them has; equal where one is empty."""
    if not mine or not theirs:
        return None, None
    if not isinstance(mine, Mapping):
        return mine, theirs
    names = mine.keys() & theirs.keys()
    return {name: mine[name] for name in names}, {name: theirs[name] for name in names}


def _span(counts: np.ndarray) -> str:
    """`5`, or `5-7`."""
    if not counts.size:
        return "0"
    fewest, most = counts.min(), counts.max()
    return f"{fewest}" if fewest == most else f"{fewest}-{most}"
