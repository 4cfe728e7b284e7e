"""Numbers under a protocol with their intervals, and the three maps of a result.json that hold several of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from eval.intervals import DEFAULT_BOOTSTRAP, SAME, Bootstrap, Interval, interval, percent_interval, resampled_means
from eval.protocols import Protocol
from eval.retrieval import RECALL_AT, RetrievalResult
from kernels.errors import UserError

MEDIAN_SAMPLES = 200
"""Bootstrap samples of a median's interval, which costs more than a mean's."""


@dataclass(frozen=True)
class Figures:
    """Numbers under one protocol."""

    protocol: Protocol
    metrics: dict[str, float]
    """Flat names to percent (or ranks)."""
    intervals: dict[str, Interval]
    """95 % intervals under the same names; a setting such as a threshold has none."""


@dataclass(frozen=True)
class QueryValues:
    """Values of the same Q queries, whose means are figures."""

    image: np.ndarray
    """(Q,) ids: queries of one image are drawn together."""
    values: dict[str, np.ndarray]
    """Name of the figure -> (Q,), in percent."""
    ranks: Collection[str] = ()
    """Names of figures that are ranks instead."""


@dataclass(frozen=True)
class Direction:
    """One direction of retrieval."""

    result: RetrievalResult
    image: np.ndarray
    """(Q,) the image of each query."""
    fold: np.ndarray | None = None
    """(Q,) the fold of each query: ranks are then means over folds."""


def retrieval_figures(
    protocol: Protocol, directions: Mapping[str, Direction], bootstrap: Bootstrap = DEFAULT_BOOTSTRAP
) -> Figures:
    """Every retrieval measure with intervals, and RSUM where there are two directions.

    Args:
        protocol: what the figures mean.
        directions: by name, such as `image_to_text`.
        bootstrap: over images; all intervals come from the same draws.
    """
    groups = []
    summands: list[str] = []
    for name, direction in directions.items():
        values = _query_values(name, direction.result)
        groups.append(QueryValues(direction.image, values, (f"{name}/mean_rank",)))
        summands += [f"{name}/R@{k}" for k in RECALL_AT]
    found = mean_figures(protocol, groups, {"rsum": summands}, bootstrap)
    fewer = replace(bootstrap, samples=min(bootstrap.samples, MEDIAN_SAMPLES))
    for name, direction in directions.items():
        found.metrics[f"{name}/median_rank"] = _median_rank(direction)
        found.intervals[f"{name}/median_rank"] = _median_interval(direction, fewer)
    return found


def _query_values(name: str, result: RetrievalResult) -> dict[str, np.ndarray]:
    """The measures of a direction that are means over queries, recalls in percent: name -> (Q,)."""
    values = {}
    for index, k in enumerate(result.ks):
        hits = result.hits[:, index]
        shares = result.true_recalls[:, index]
        values[f"{name}/R@{k}"] = 100 * hits
        values[f"{name}/true_recall@{k}"] = 100 * shares
    values[f"{name}/mean_rank"] = result.ranks
    return values


def mean_figures(
    protocol: Protocol,
    groups: Sequence[QueryValues],
    sums: Mapping[str, Sequence[str]],
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> Figures:
    """Means over queries with intervals over images.

    Args:
        protocol: what the figures mean.
        groups: the values of one or several sets of queries.
        sums: name -> the figures that it adds up; skipped where one of them is absent.
        bootstrap: over the images of all groups; all intervals come from the same draws.
    """
    ids = np.unique(np.concatenate([group.image for group in groups]))
    draws = bootstrap.draws(len(ids))
    metrics: dict[str, float] = {}
    spread: dict[str, np.ndarray] = {}
    intervals: dict[str, Interval] = {}
    for group in groups:
        position = np.searchsorted(ids, group.image)
        columns = np.stack(list(group.values.values()), 1)
        means = resampled_means(columns, position, draws)
        images = len(np.unique(group.image))
        for index, (name, values) in enumerate(group.values.items()):
            metrics[name] = float(values.mean())
            spread[name] = means[:, index]
            intervals[name] = interval(means[:, index])
            if name not in group.ranks:
                intervals[name] = percent_interval(means[:, index], images)
    for total, names in sums.items():
        if not set(names) <= spread.keys():
            continue
        metrics[total] = float(sum(metrics[name] for name in names))
        spread[total] = np.sum([spread[name] for name in names], axis=0)
        intervals[total] = _sum_interval(spread[total], [intervals[name] for name in names])
    return Figures(protocol, metrics, intervals)


def _sum_interval(samples: np.ndarray, summands: Sequence[Interval]) -> Interval:
    """95 % interval of a sum: of its own bootstrap distribution (S,), or where all samples agree that of its parts."""
    low, high = interval(samples)
    if high - low > SAME:
        return low, high
    lows, highs = zip(*summands, strict=True)
    return sum(lows), sum(highs)


def _median_rank(direction: Direction) -> float:
    """The median, or the mean over folds of their medians."""
    ranks = direction.result.ranks
    if direction.fold is None:
        return float(np.median(ranks))
    medians = []
    for fold in np.unique(direction.fold):
        in_fold = ranks[direction.fold == fold]
        medians.append(np.median(in_fold))
    return float(np.mean(medians))


def _median_interval(direction: Direction, bootstrap: Bootstrap) -> Interval:
    """Bootstrap over images of a median: the rank at which the drawn weight passes one half.

    Args:
        direction: whose ranks have the median.
        bootstrap: over images.
    """
    ids, position = np.unique(direction.image, return_inverse=True)
    ranks = direction.result.ranks
    order = np.argsort(ranks)
    draws = bootstrap.draws(len(ids))
    weight = np.cumsum(draws[:, position[order]], axis=1)
    half = weight[:, -1:] / 2
    middle = (weight < half).sum(1)
    last = len(order) - 1
    medians = ranks[order[np.minimum(middle, last)]]
    return interval(medians)


def join_figures(evaluations: Mapping[str, Figures]) -> dict[str, Any]:
    """Several evaluations in the three maps of a result.json; `split_figures` is the inverse.

    Args:
        evaluations: by name, such as a split or `matching/random/cosine`. The first is the one that counts.

    Returns:
        `metrics` and `intervals`, in which names of the first evaluation stay as they are and those of every other get
        `<evaluation>/` in front, and `protocol`, which holds each evaluation's own.
    """
    metrics: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    protocols: dict[str, dict[str, Any]] = {}
    for evaluation, figures in evaluations.items():
        prefix = f"{evaluation}/" if protocols else ""
        for name, value in figures.metrics.items():
            metrics[f"{prefix}{name}"] = value
        for name, ends in figures.intervals.items():
            intervals[f"{prefix}{name}"] = list(ends)
        protocols[evaluation] = asdict(figures.protocol)
    return {
        "metrics": metrics,
        "intervals": intervals,
        "protocol": protocols,
    }


def split_figures(result: Mapping[str, Any]) -> dict[str, Figures]:
    """The evaluations of a result.json, by name, in their order.

    Args:
        result: with the three maps of `join_figures`.

    Raises:
        ValueError: where it has no protocol, or one with other fields.
    """
    if not result.get("protocol"):
        raise UserError("a result without a protocol says nothing: evaluate the run again")
    found = {}
    for evaluation, protocol in result["protocol"].items():
        found[evaluation] = Figures(Protocol.of_dict(protocol), {}, {})
    first, *others = found
    for name, value in result["metrics"].items():
        owner, own_name = _owner(name, first, others)
        found[owner].metrics[own_name] = value
    for name, (low, high) in result["intervals"].items():
        owner, own_name = _owner(name, first, others)
        found[owner].intervals[own_name] = (low, high)
    return found


def first_protocol(result: Mapping[str, Any]) -> Protocol:
    """Of the evaluation that counts: the one whose figures have no prefix."""
    protocol = next(iter(result["protocol"].values()))
    return Protocol.of_dict(protocol)


def _owner(name: str, first: str, others: Sequence[str]) -> tuple[str, str]:
    """To which evaluation a figure belongs.

    Args:
        name: of the figure in the result.
        first: the evaluation without a prefix.
        others: those with one.

    Returns:
        the evaluation, and the figure's name in it.
    """
    for evaluation in sorted(others, key=len, reverse=True):
        prefix = f"{evaluation}/"
        if name.startswith(prefix):
            return evaluation, name.removeprefix(prefix)
    return first, name


def figures_table(figures: Figures) -> Table:
    """One protocol, one measure per line, with its interval: fits a narrow terminal."""
    table = Table(title=str(figures.protocol), title_justify="left")
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    for name, value in figures.metrics.items():
        if name in figures.intervals:
            low, high = figures.intervals[name]
            table.add_row(name, f"{value:.2f}", f"{low:.2f} .. {high:.2f}")
        else:  # a setting such as a threshold, not a mean
            table.add_row(name, f"{value:.4g}", "—")
    return table
