"""What a number means: the protocol under which it was measured.

Published COCO numbers differ silently in the captions they keep (25,000 or 25,010), in folds (1K is the mean of five
disjoint thousands, not one sample), in what counts as found (any of five captions, or the share of them), in whether a
joint head re-ranked a shortlist and how deep, and in whether the model was trained on the set. All is stated here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Stated:
    """What no evaluation can count and its caller states, for the protocol."""

    dataset: str = "coco"
    """As the protocol's."""
    split: str = "unstated"
    """As the protocol's."""
    trained_on: str = "unstated"
    """As the protocol's."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """As the protocol's."""


@dataclass(frozen=True)
class Protocol:
    """The protocol every figure carries. Two figures compare only when their protocols are equal."""

    dataset: str
    """Which collection, for example `coco` or `flickr8k`."""
    split: str
    """Which part of it, for example `karpathy-test`, `val2017`."""
    images: int
    """Images in the gallery, of one fold where there are folds."""
    captions: int
    """Captions in the gallery, of one fold where there are folds."""
    captions_per_image: str
    """`5`, or `5-7` where images differ."""
    recall: str = "any-hit"
    """`any-hit`: one match in the top k is enough; `true`: the share of the matches that is in the top k; `none` where
    nothing is retrieved."""
    rerank_depth: int = 0
    """How many candidates a joint head re-scored; 0 is the dual encoder alone."""
    trained_on: str = "unstated"
    """`zero-shot`, `trained on <dataset>`, `zero-shot, trained on <dataset>`, or `unstated`."""
    folds: int = 1
    """Disjoint folds whose mean is the figure."""
    ground_truth: str = "original"
    """Whose matches: `original` pairs, `cxc`, `eccv`, `pmrp`."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Samples that could not be read, by reason."""
    task: str = "retrieval"
    """`retrieval`, or what else was asked: which pairs or choices, scored how."""

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
            f"{self.dataset} {self.split}{folds} {self.images:,} images x {self.captions:,} captions"
            f" ({self.captions_per_image} each), {self.ground_truth} matches, {self.recall} recall, {depth}{skipped},"
            f" {self.trained_on}"
        )

    def differences(self, other: "Protocol") -> list[str]:
        """`field: mine != theirs` for every field in which two protocols differ."""
        found = []
        for each in fields(self):
            mine = getattr(self, each.name)
            theirs = getattr(other, each.name)
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
            raise ValueError(
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
            images=len(image_ids),
            captions=len(caption_image_ids),
            captions_per_image=_span(counts),
            **more,
        )


def _span(counts: np.ndarray) -> str:
    """`5`, or `5-7`."""
    if not counts.size:
        return "0"
    fewest, most = counts.min(), counts.max()
    return f"{fewest}" if fewest == most else f"{fewest}-{most}"
