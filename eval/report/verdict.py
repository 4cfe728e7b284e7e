"""What to think of an evaluation, in sentences: against chance and a baseline, with intervals, on what."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.figures import Figures
from eval.protocols import RANDOM_WEIGHTS
from eval.report.charts import arrow
from eval.report.history import Row, curve
from eval.report.tables import Baseline, chance_at, forced_chance

FEW_IMAGES = 500
"""Below, intervals are wide whatever the model."""
USEFUL = 50.0
"""R@10, in percent, below which a direction is called weak: a search would miss more often than it finds."""
TREND = 0.02
"""Share of the best RSUM by which a later one must differ to be said."""


@dataclass(frozen=True)
class Verdict:
    """The first sentence is what to think, the others are why and how far."""

    sentences: list[str]
    tone: str
    """`good` far above chance everywhere, `open` in part or weakly, `bad` nowhere."""


def retrieval_verdict(
    figures: Figures, chances: Mapping[str, float], baseline: Baseline | None, history: Sequence[Row]
) -> Verdict:
    """Of the evaluation that counts.

    Args:
        figures: its own.
        chances: R@1 of a random ranking by direction, in percent.
        baseline: another result of the same protocol, if one is stored.
        history: rows of metrics.csv.
    """
    directions = [name.removesuffix("/R@1") for name in figures.metrics if name.endswith("/R@1")]
    directions = [name for name in directions if "/" not in name and f"{name}/R@1" in figures.intervals]
    if not directions:
        return Verdict([*_choices(figures), *_caveats(figures)], "open")
    above = [name for name in directions if _above_chance(figures, name, chances)]
    tone, start = _grade(figures, directions, len(above))
    first = directions[0]
    sentences = [f"{start}: {_found_first(figures, first, chances)}."]
    sentences += [f"{arrow(name)}: {_found_first(figures, name, chances)}." for name in directions[1:2]]
    missed = [arrow(name) for name in directions if name not in above]
    if missed and above:
        sentences.append(f"At chance: {', '.join(missed)}, whose 95 % intervals reach down to it.")
    sentences += [*_against(figures, directions, baseline), *_trend(history), *_caveats(figures)]
    return Verdict(sentences, tone)


def _choices(figures: Figures) -> list[str]:
    """What is no retrieval: the mean or else the first figure that has an interval."""
    names = sorted(figures.intervals, key=lambda name: name not in ("mean", "accuracy"))
    if not names:
        return []
    low, high = figures.intervals[names[0]]
    chance = forced_chance(names[0], figures.protocol)
    known = "" if math.isnan(chance) else f", chance {chance:g}"
    return [f"{names[0]} {figures.metrics[names[0]]:.1f} (95 % interval {low:.1f} to {high:.1f}{known})."]


def _grade(figures: Figures, directions: Sequence[str], above: int) -> tuple[str, str]:
    """Tone, and the words that the verdict begins with.

    Args:
        figures: of all directions.
        directions: their names.
        above: how many of them are above chance.
    """
    count = len(directions)
    every = "both" if count == 2 else f"all {count}"
    if not above:
        return "bad", "Not to be told from chance in any direction"
    if above < count:
        return "open", f"Above chance in {above} of {count} directions only"
    deep = [figures.metrics.get(f"{name}/R@10", 0.0) for name in directions]
    if min(deep) < USEFUL:
        return "open", f"Above chance in {every} directions, but weak"
    return "good", f"Far above chance in {every} directions"


def _above_chance(figures: Figures, direction: str, chances: Mapping[str, float]) -> bool:
    """Whether the interval of R@1, or of R@10 where it is narrower, lies above a random ranking's."""
    for k in (1, 10):
        chance = chance_at(figures.protocol, direction, k, chances.get(direction))
        low, _ = figures.intervals.get(f"{direction}/R@{k}", (0.0, 0.0))
        if low > chance:
            return True
    return False


def _found_first(figures: Figures, direction: str, chances: Mapping[str, float]) -> str:
    """R@1 with its interval and chance, and R@10."""
    asking, _, asked = direction.partition("_to_")
    name = f"{direction}/R@1"
    low, high = figures.intervals[name]
    chance = chance_at(figures.protocol, direction, 1, chances.get(direction))
    known = "" if math.isnan(chance) else f", chance {chance:.2g} %"
    words = {"image": "image", "text": "caption", "audio": "audio clip"}
    said = (
        f"a right {words[asked]} comes first for {figures.metrics[name]:.1f} % of the {words[asking]}s"
        f" (95 % interval {low:.1f} to {high:.1f}{known})"
    )
    deeper = f"{direction}/R@10"
    return said + (f", within the first ten for {figures.metrics[deeper]:.1f} %" if deeper in figures.metrics else "")


def _against(figures: Figures, directions: Sequence[str], baseline: Baseline | None) -> list[str]:
    """Whether the baseline's R@1 lies within the interval of the first direction."""
    if baseline is None:
        return []
    name = f"{directions[0]}/R@1"
    if name not in baseline.metrics:
        return []
    low, high = figures.intervals[name]
    theirs = baseline.metrics[name]
    relation = "no clear difference to"
    if theirs < low:
        relation = "better than"
    if theirs > high:
        relation = "worse than"
    sums = ""
    if "RSUM" in figures.metrics and "RSUM" in baseline.metrics:
        sums = f"; RSUM {figures.metrics['RSUM']:.1f} against {baseline.metrics['RSUM']:.1f}"
    return [
        f"{relation.capitalize()} the stored run {baseline.name}, the best of this protocol: R@1"
        f" {arrow(directions[0])} {figures.metrics[name]:.1f} against {theirs:.1f}{sums}."
    ]


def _trend(history: Sequence[Row]) -> list[str]:
    """Whether validation still rose at the end of training, or had its best behind it."""
    points = curve(history, "val/RSUM")
    if len(points) < 3:
        return []
    best_step, best = max(points, key=lambda point: point[1])
    last = points[-1][1]
    if best - last > TREND * best:
        return [
            f"Validation was best at step {best_step:g} (RSUM {best:.1f}) and ended at {last:.1f}: it trained too long."
        ]
    if last - points[-2][1] > TREND * best:
        return ["Validation was still rising at the last step: more steps would help."]
    return ["Validation had levelled off when training ended."]


def _caveats(figures: Figures) -> list[str]:
    """What the figures do not say."""
    protocol = figures.protocol
    found = [f"Evaluated on {protocol}."]
    if RANDOM_WEIGHTS in protocol.trained_on:
        found.append("The weights are random: these figures are of no trained model.")
    if 0 < protocol.images < FEW_IMAGES:
        found.append(f"Only {protocol.images} images: a small gallery is easy, and the intervals are wide.")
    skipped = sum(protocol.skipped.values())
    if skipped:
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in protocol.skipped.items())
        found.append(f"{skipped:,} skipped: {reasons}.")
    return found
