"""The schedule: what a step trains, and how, is a pure function of progress, the fraction of the run done.

There is no counter to lose: a resumed run reads the same weights from the same step. What progresses is `kind`:

`progressive`        pairs and terms come in by stages: image-text, then audio-text with the fine-grained terms, then
                     image-audio with matching
`detail_later`       all contrastive pairs from the first step; fine-grained terms from stage 2, matching from stage 3
`detail_apart`       these from stage 2, but what contrastive terms read too learns nothing from them before stage 3
`detail_balanced`    as detail_later; there their gradient is no longer than that of the contrastive terms
`detail_projected`   as detail_later; there conflicting gradients are projected (PCGrad, Yu et al. 2020)
`hardening`          contrastive terms alone, of a temperature that falls
`few_tokens`         contrastive terms alone; the backbone reads half of the tokens before stage 3
                     (FLIP, Li et al. 2023)
`anchor_first`       contrastive terms alone: image-text, and from stage 2 audio against sides that hold still
                     (LiT, Zhai et al. 2022)
`codes_later`        contrastive terms alone; the backbone sees no codes before stage 2, all of them from stage 3
`projections_first`  contrastive terms alone; before stage 3 the direct projections of trunks' summaries alone learn,
                     then codes and the backbone add to them from zero: most steps cost a fraction of a whole one
`detail_on_top`      as projections_first; from stage 2 late interaction of the trunks' own tokens learns to tell apart
                     what the contrastive logits rank highest, which hold still under it: to re-rank

The counterfactuals have nothing that progresses: `joint` has every term, `contrastive_only` the contrastive ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from alignment.gradients import Merge
from kernels.errors import UserError
from kernels.ranges import check_ranges

Pair = tuple[str, str]
"""Two modalities that are aligned."""
RAMP = 0.05
"""Progress that a new term takes from zero to its full weight."""
FEW = 0.5
"""The share of its tokens that `few_tokens` begins with."""
HARDEST = 0.03
"""The temperature at which `hardening` ends."""

SEAMS: dict[str, tuple[int, ...]] = {
    "progressive": (2, 3),
    "detail_later": (2, 3),
    "detail_apart": (2, 3),
    "detail_balanced": (2, 3),
    "detail_projected": (2, 3),
    "few_tokens": (3,),
    "anchor_first": (2,),
    "codes_later": (2, 3),
    "projections_first": (3,),
    "detail_on_top": (2, 3),
}
"""The stages at which a kind of schedule changes; the others never do."""
MATCHED = ("progressive", "joint", "detail_later", "detail_apart", "detail_balanced", "detail_projected")
"""The kinds that have matching terms."""
DETAILED = (*MATCHED, "detail_on_top")
"""The kinds that have fine-grained terms."""
SUMMARIES_FIRST = ("projections_first", "detail_on_top")
"""The kinds whose bottlenecks and backbone come in with stage 3."""
LATE_PAIRS = ("progressive", "anchor_first")
"""The kinds whose pairs come in by their stage; the others have all pairs from the first step."""


@dataclass(frozen=True)
class ScheduleConfig:
    """When modalities, terms and detail come in."""

    kind: Literal[
        "progressive",
        "joint",
        "contrastive_only",
        "detail_later",
        "detail_apart",
        "detail_balanced",
        "detail_projected",
        "hardening",
        "few_tokens",
        "anchor_first",
        "codes_later",
        "projections_first",
        "detail_on_top",
    ] = "contrastive_only"
    """progressive: three stages; joint: every term from the first step; contrastive_only: contrastive terms alone, from
    the first step; the others: see alignment/schedule.py."""
    stage2: Annotated[float, "[0, 1]"] = 0.15
    """Progress at which the second stage begins: in progressive the fine-grained terms and audio."""
    stage3: Annotated[float, "[0, 1]"] = 0.85
    """Progress at which the third stage begins: in progressive matching and image-audio."""
    learning_rate_factor: Annotated[float, "(0, inf)"] = 0.8
    """progressive: the learning rate is multiplied by this at each new stage."""

    def __post_init__(self) -> None:
        check_ranges(self, "schedule")
        if self.stage2 > self.stage3:
            raise UserError(
                f"schedule.stage2={self.stage2} comes after schedule.stage3={self.stage3}: need stage2 <= stage3"
            )


@dataclass(frozen=True)
class LossWeights:
    """Weights of the pair terms at one moment, each a dict from pair to weight in [0, 1]."""

    contrastive: dict[Pair, float]
    fine: dict[Pair, float]
    itm: dict[Pair, float]


@dataclass(frozen=True)
class Moment:
    """What a step is beside its weights. It is the same throughout a stage: a recorded step has one for good.

    Args:
        tokens: share of its tokens that the backbone reads; with 0 neither bottlenecks nor backbone run.
        all_codes: whether it sees the codes of every row; else of a share of the rows, see `code_share`.
        merge: what becomes of the gradients of fine-grained and matching terms in what contrastive terms read too.
    """

    tokens: float = 1.0
    all_codes: bool = True
    merge: Merge = "sum"


def ramp(progress: float, start: float, length: float) -> float:
    """0 before `start`, 1 after `start + length`, smooth (C¹) between: 3x² - 2x³."""
    if length <= 0:
        return float(progress >= start)
    x = min(max((progress - start) / length, 0.0), 1.0)
    return x * x * (3 - 2 * x)


def has_stage(config: ScheduleConfig, number: int) -> bool:
    """Whether the schedule changes at stage 2 or 3."""
    return number in SEAMS.get(config.kind, ())


def stage(config: ScheduleConfig, progress: float) -> int:
    """1, 2 or 3. A stage that the schedule does not have begins with the one before it."""
    reached = 1
    for number, start in ((2, config.stage2), (3, config.stage3)):
        if has_stage(config, number) and progress < start:
            break
        reached = number
    return reached


def begun(config: ScheduleConfig, progress: float, number: int) -> float:
    """The weight in [0, 1] of what comes in with a stage: 1 where the schedule does not have it, nor one before."""
    weight = 1.0
    for earlier, start in ((2, config.stage2), (3, config.stage3)):
        if earlier <= number and has_stage(config, earlier):
            weight = min(weight, ramp(progress, start, RAMP))
    return weight


def loss_weights(config: ScheduleConfig, progress: float, stages: Mapping[Pair, int]) -> LossWeights:
    """Weights of every pair's terms at `progress` in [0, 1]; stages: the pairs, and the stage each comes in."""
    contrastive = {}
    for pair, number in stages.items():
        contrastive[pair] = begun(config, progress, number) if config.kind in LATE_PAIRS else 1.0
    detail = float(config.kind in DETAILED)
    matched = float(config.kind in MATCHED)
    fine = begun(config, progress, 2)
    itm = begun(config, progress, 2 if config.kind == "detail_apart" else 3)
    return LossWeights(
        contrastive,
        fine={pair: detail * min(fine, weight) for pair, weight in contrastive.items()},
        itm={pair: matched * min(itm, weight) for pair, weight in contrastive.items()},
    )


def learning_rate_factor(config: ScheduleConfig, progress: float) -> float:
    """The stage's factor on the learning rate; 1 throughout for all kinds but `progressive`."""
    if config.kind != "progressive":
        return 1.0
    return config.learning_rate_factor ** (stage(config, progress) - 1)


def moment(config: ScheduleConfig, progress: float) -> Moment:
    """What a step at `progress` in [0, 1] is beside its weights."""
    late = progress >= config.stage3
    match config.kind:
        case "few_tokens":
            return Moment(tokens=1.0 if late else FEW)
        case "codes_later":
            return Moment(all_codes=late)
        case kind if kind in SUMMARIES_FIRST:
            return Moment(tokens=float(late))
        case "detail_apart":
            return Moment(merge="sum" if late else "apart")
        case "detail_balanced":
            return Moment(merge="balanced")
        case "detail_projected":
            return Moment(merge="projected")
        case _:
            return Moment()


def code_share(config: ScheduleConfig, progress: float) -> float:
    """The share of rows in [0, 1] of which the backbone sees the codes, and not their bypass alone."""
    if config.kind != "codes_later":
        return 1.0
    return ramp(progress, config.stage2, config.stage3 - config.stage2)


def highest_temperature(config: ScheduleConfig, initial: float, progress: float) -> float | None:
    """What the contrastive terms' temperature has fallen to at least, in equal ratios from the initial one; None where
    it is left to learning."""
    if config.kind != "hardening":
        return None
    return initial * min(1.0, HARDEST / initial) ** progress


def on_top(config: ScheduleConfig) -> bool:
    """Whether late interaction is added to the contrastive logits, which hold still under it."""
    return config.kind == "detail_on_top"


def still_sides(config: ScheduleConfig, stages: Mapping[Pair, int]) -> dict[Pair, str]:
    """Of each pair that has one the side that holds still: the loss has no gradient through its embedding.

    Args:
        config: of the schedule.
        stages: the pairs, and the stage each comes in. What is aligned in the first one holds still in the later ones.
    """
    if config.kind != "anchor_first":
        return {}
    anchors: set[str] = set()
    for pair, number in stages.items():
        if number == 1:
            anchors.update(pair)
    found = {}
    for pair in stages:
        still = anchors.intersection(pair)
        if len(still) == 1:
            (found[pair],) = still
    return found
