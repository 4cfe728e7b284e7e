"""What a number means: the protocol it was measured under, and a table that will not mix two of them.

Published COCO numbers differ silently in the captions they keep (25,000 or 25,010), in folds (1K is the mean of five
disjoint thousands, not one sample), in what counts as found (any of five captions, or the share of them), in whether a
joint head re-ranked a shortlist and how deep, and in whether the model was trained on the set. All is stated here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
from rich.table import Table

from eval.intervals import Interval, image_draws, interval, resampled_means
from eval.retrieval import RetrievalResult

RANK_MEASURES = ("median_rank", "mean_rank")


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
    """`zero-shot`, `trained on <dataset>`, or `unstated`."""
    folds: int = 1
    """Disjoint folds whose mean is the figure."""
    ground_truth: str = "original"
    """Whose matches: `original` pairs, `cxc`, `eccv`, `pmrp`."""
    skipped: int = 0
    """Samples skipped because they could not be read."""
    task: str = "retrieval"
    """`retrieval`, or what else was asked: which pairs or choices, scored how."""

    def __str__(self) -> str:
        if self.task != "retrieval":
            skipped_lines = f", {self.skipped:,} skipped" if self.skipped else ""
            return (
                f"{self.dataset} {self.split}: {self.task}; {self.images:,} images or audio clips x {self.captions:,}"
                f" captions{skipped_lines}, {self.trained_on}"
            )
        folds = f" in {self.folds} folds of" if self.folds > 1 else ""
        depth = f"re-ranked to {self.rerank_depth}" if self.rerank_depth else "not re-ranked"
        return (
            f"{self.dataset} {self.split}{folds} {self.images:,} images x {self.captions:,} captions"
            f" ({self.captions_per_image} each), {self.ground_truth} matches, {self.recall} recall, {depth},"
            f" {self.trained_on}"
        )

    def differences(self, other: "Protocol") -> list[str]:
        """`field: mine != theirs` for every field in which two protocols differ."""
        return [
            f"{f.name}: {getattr(self, f.name)} != {getattr(other, f.name)}"
            for f in fields(self)
            if getattr(self, f.name) != getattr(other, f.name)
        ]

    @classmethod
    def of_dict(cls, stamp: Mapping[str, Any]) -> "Protocol":
        """From a result.json. Raises ValueError naming a field that is missing or unknown.

        A run's protocol may say `zero_shot` beside the name of its training set, and count what it skipped by reason.
        """
        stamp = dict(stamp)
        if "zero_shot" in stamp:
            trained_on = stamp.get("trained_on", "unstated")
            stamp["trained_on"] = f"{'zero-shot, ' if stamp.pop('zero_shot') else ''}trained on {trained_on}"
        if isinstance(stamp.get("skipped"), Mapping):
            stamp["skipped"] = sum(stamp["skipped"].values())
        names = {f.name for f in fields(cls)}
        required = {"dataset", "split", "images", "captions", "captions_per_image"}
        if wrong := sorted(set(stamp) - names) or sorted(required - set(stamp)):
            raise ValueError(f"a protocol has the fields {sorted(names)}; unknown or missing here: {', '.join(wrong)}")
        return cls(**stamp | {"captions_per_image": f"{stamp['captions_per_image']}".removesuffix(".0")})

    @classmethod
    def of_ids(cls, image_ids: np.ndarray, caption_image_ids: np.ndarray, **stated: Any) -> "Protocol":
        """Sizes counted from ids; the rest as stated."""
        counts = np.unique(caption_image_ids, return_counts=True)[1]
        span = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()}-{counts.max()}"
        return cls(images=len(image_ids), captions=len(caption_image_ids), captions_per_image=span, **stated)


@dataclass(frozen=True)
class Figures:
    """Numbers under one protocol: flat names to percent (or ranks), and 95 % intervals for the same names.

    `values[name]` are the per-query values behind a mean, `images[name]` the image of each query: what a paired test
    between two runs needs.
    """

    protocol: Protocol
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    values: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    images: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def as_result(self) -> dict[str, Any]:
        """The part of a result.json that this is."""
        return {
            "protocol": asdict(self.protocol),
            "metrics": self.metrics,
            "intervals": {name: list(pair) for name, pair in self.intervals.items()},
        }


Directions = Mapping[str, tuple[RetrievalResult, np.ndarray]]


def retrieval_figures(
    protocol: Protocol,
    directions: Directions,
    *,
    fold: Mapping[str, np.ndarray] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Every retrieval measure with intervals, and RSUM where there are two directions.

    directions: name such as `image_to_text` -> (result, image of each query (Q,)). `fold` gives each query's fold:
    ranks are then means over folds. Intervals are bootstraps over images, all from the same draws.
    """
    values: dict[str, np.ndarray] = {}
    images: dict[str, np.ndarray] = {}
    for name, (result, image) in directions.items():
        for index, k in enumerate(result.ks):
            values[f"{name}/R@{k}"] = 100 * result.hits[:, index]
            values[f"{name}/true_recall@{k}"] = 100 * result.true_recalls[:, index]
        values[f"{name}/mean_rank"] = result.ranks
        images |= dict.fromkeys([key for key in values if key.startswith(f"{name}/")], image)
    found = mean_figures(
        protocol,
        values,
        images,
        samples=samples,
        seed=seed,
        total=("rsum", [f"{name}/R@{k}" for name in directions for k in (1, 5, 10)]),
    )
    for name, (result, image) in directions.items():
        groups = np.zeros(len(image), int) if fold is None else fold[name]
        found.metrics[f"{name}/median_rank"] = float(
            np.mean([np.median(result.ranks[groups == g]) for g in np.unique(groups)])
        )
        found.intervals[f"{name}/median_rank"] = _median_interval(result.ranks, image, min(samples, 200), seed)
    return found


def mean_figures(
    protocol: Protocol,
    values: dict[str, np.ndarray],
    images: dict[str, np.ndarray],
    *,
    total: tuple[str, Sequence[str]] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Means of per-query values (Q,) with intervals over images (Q,); `total` names a sum of some of them."""
    ids = np.unique(np.concatenate(list(images.values())))
    draws = image_draws(len(ids), samples, seed)
    metrics, intervals = {}, {}
    spread: dict[str, np.ndarray] = {}
    groups: dict[int, list[str]] = {}
    for name in values:
        groups.setdefault(id(images[name]), []).append(name)
    for names in groups.values():
        position = np.searchsorted(ids, images[names[0]])
        means = resampled_means(np.stack([values[name] for name in names], 1), position, draws)
        spread |= {name: means[:, index] for index, name in enumerate(names)}
    for name in values:
        metrics[name], intervals[name] = float(values[name].mean()), interval(spread[name])
    if total is not None and all(name in values for name in total[1]):
        metrics[total[0]] = float(sum(metrics[name] for name in total[1]))
        intervals[total[0]] = interval(np.sum([spread[name] for name in total[1]], axis=0))
    return Figures(protocol, metrics, intervals, values, images)


def _median_interval(ranks: np.ndarray, image: np.ndarray, samples: int, seed: int) -> Interval:
    """Bootstrap over images of a median: the rank at which the drawn weight passes one half."""
    ids, position = np.unique(image, return_inverse=True)
    order = np.argsort(ranks)
    weight = np.cumsum(image_draws(len(ids), samples, seed)[:, position[order]], axis=1)
    middle = (weight < weight[:, -1:] / 2).sum(1)
    return interval(ranks[order][np.minimum(middle, len(order) - 1)])


@dataclass(frozen=True)
class Row:
    """One line of a table: who, under which protocol, with which numbers."""

    name: str
    protocol: Protocol
    metrics: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)


def results_table(
    rows: Sequence[Row],
    measures: Sequence[str] | None = None,
    *,
    title: str = "",
    style: Literal["percent", "plain"] = "percent",
) -> Table:
    """A rich table, a column for each run and a line for each measure: names stay whole on a narrow terminal.

    Raises ValueError where two protocols would share the table.
    """
    if not rows:
        raise ValueError("a table needs at least one row")
    for row in rows[1:]:
        if differs := rows[0].protocol.differences(row.protocol):
            raise ValueError(
                f"{rows[0].name} and {row.name} were measured under different protocols and cannot share a"
                f" table ({'; '.join(differs)}): print one table per protocol"
            )
    table = Table(title=title or str(rows[0].protocol), title_justify="left")
    table.add_column("measure", no_wrap=True)
    for row in rows:
        table.add_column(row.name, justify="right", overflow="fold")
    for measure in measures or dict.fromkeys(name for row in rows for name in row.metrics):
        table.add_row(measure, *(_cell(row, measure, 2 if style == "percent" else 4) for row in rows))
    return table


def figures_table(figures: Figures, title: str = "") -> Table:
    """One protocol, one measure per line, with its interval: fits a narrow terminal."""
    table = Table(title=title or str(figures.protocol), title_justify="left")
    for name in ("measure", "value", "95 % interval"):
        table.add_column(name, justify="left" if name == "measure" else "right", no_wrap=True)
    for name, value in figures.metrics.items():
        if name in figures.intervals:
            low, high = figures.intervals[name]
            table.add_row(name, f"{value:.2f}", f"{low:.2f} .. {high:.2f}")
        else:  # a setting such as a threshold, not a mean
            table.add_row(name, f"{value:.4g}", "—")
    return table


def _cell(row: Row, measure: str, digits: int) -> str:
    if measure not in row.metrics:
        return "—"
    text = f"{row.metrics[measure]:.{digits}f}"
    if measure in row.intervals:
        low, high = row.intervals[measure]
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return text
