"""The schedule is a pure function of progress: nothing before a term's stage, everything after it, no jump between."""

from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment import (
    LossWeights,
    Moment,
    ScheduleConfig,
    code_share,
    highest_temperature,
    learning_rate_factor,
    moment,
    on_top,
    ramp,
    stage,
    still_sides,
)
from alignment import loss_weights as weights_of
from alignment.schedule import FEW, HARDEST, RAMP

CONFIG = ScheduleConfig("progressive", stage2=0.2, stage3=0.6)
IMAGE_TEXT = ("image", "text")
AUDIO_TEXT = ("audio", "text")
IMAGE_AUDIO = ("image", "audio")
KINDS = get_args(get_type_hints(ScheduleConfig)["kind"])
STAGES = {IMAGE_TEXT: 1, AUDIO_TEXT: 2, IMAGE_AUDIO: 3}
progresses = st.floats(0, 1)


def loss_weights(config: ScheduleConfig, progress: float) -> LossWeights:
    return weights_of(config, progress, STAGES)


def flat(weights: LossWeights) -> list[float]:
    return [kind[pair] for kind in (weights.contrastive, weights.fine, weights.itm) for pair in STAGES]


def test_terms_begin_with_their_stage() -> None:
    before, middle, end = (loss_weights(CONFIG, p) for p in (0.2, 0.45, 1.0))
    assert before.contrastive == {IMAGE_TEXT: 1, AUDIO_TEXT: 0, IMAGE_AUDIO: 0}
    assert not any(before.fine.values()) and not any(before.itm.values())
    assert middle.contrastive == middle.fine == {IMAGE_TEXT: 1, AUDIO_TEXT: 1, IMAGE_AUDIO: 0}
    assert not any(middle.itm.values())
    assert flat(end) == [1] * 9


def of_kind(kind: str) -> ScheduleConfig:
    return ScheduleConfig(kind, stage2=0.2, stage3=0.6)  # type: ignore[arg-type]


@given(st.sampled_from(KINDS), progresses, progresses)
def test_weights_rise_and_never_jump(kind: str, a: float, b: float) -> None:
    low, high = sorted((a, b))
    steepest = 1.5 / RAMP  # of 3x² - 2x³
    config = of_kind(kind)
    for x, y in zip(flat(loss_weights(config, low)), flat(loss_weights(config, high)), strict=True):
        assert 0 <= x <= y <= 1
        assert y - x <= steepest * (high - low) + 1e-9


def everything(config: ScheduleConfig, progress: float) -> tuple[Any, ...]:
    """All that a step reads of a schedule."""
    temperature = highest_temperature(config, 0.1, progress)
    rate = learning_rate_factor(config, progress)
    of_codes = code_share(config, progress)
    return loss_weights(config, progress), moment(config, progress), of_codes, temperature, rate


@given(st.sampled_from(KINDS), progresses)
def test_the_same_progress_gives_the_same_step_whatever_came_before(kind: str, progress: float) -> None:
    config = of_kind(kind)
    first = everything(config, progress)
    everything(config, 1.0)
    assert everything(config, progress) == first


@given(progresses)
def test_the_counterfactuals_have_no_stages(progress: float) -> None:
    joint = loss_weights(ScheduleConfig(kind="joint"), progress)
    alone = loss_weights(ScheduleConfig(kind="contrastive_only"), progress)
    assert flat(joint) == [1] * 9
    assert flat(alone) == [1] * 3 + [0] * 6
    for kind in ("joint", "contrastive_only"):
        assert learning_rate_factor(ScheduleConfig(kind=kind), progress) == 1
        assert stage(ScheduleConfig(kind=kind), progress) == 3


def test_the_learning_rate_falls_by_a_fifth_at_each_stage() -> None:
    factors = [learning_rate_factor(CONFIG, p) for p in (0.1, 0.3, 0.9)]
    assert factors == pytest.approx([1, 0.8, 0.64])
    assert [stage(CONFIG, p) for p in (0.1, 0.2, 0.59, 0.6)] == [1, 2, 2, 3]


def test_a_ramp_without_length_is_a_step() -> None:
    assert [ramp(p, 0.5, 0) for p in (0.49, 0.5, 0.51)] == [0, 1, 1]
    assert ramp(0.55, 0.5, 0.1) == pytest.approx(0.5)


def test_stages_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stage2=0\.7 comes after schedule\.stage3=0\.3"):
        ScheduleConfig(stage2=0.7, stage3=0.3)


@pytest.mark.parametrize("kind", ["detail_later", "detail_balanced", "detail_projected"])
def test_detail_comes_later_for_pairs_that_are_there_from_the_first_step(kind: str) -> None:
    begin, seam, middle, end = (loss_weights(of_kind(kind), p) for p in (0.0, 0.2, 0.45, 1.0))
    assert flat(begin) == flat(seam) == [1] * 3 + [0] * 6
    assert flat(middle) == [1] * 6 + [0] * 3
    assert flat(end) == [1] * 9
    assert [stage(of_kind(kind), p) for p in (0.1, 0.2, 0.6)] == [1, 2, 3]


def test_detail_that_is_kept_apart_reaches_what_is_shared_from_stage_3_on() -> None:
    config = of_kind("detail_apart")
    assert flat(loss_weights(config, 0.2)) == [1] * 3 + [0] * 6
    assert flat(loss_weights(config, 0.45)) == [1] * 9
    assert [moment(config, p).merge for p in (0.0, 0.45, 0.59, 0.6, 1.0)] == ["apart"] * 3 + ["sum"] * 2


@pytest.mark.parametrize(
    ("kind", "merge"), [("detail_later", "sum"), ("detail_balanced", "balanced"), ("detail_projected", "projected")]
)
def test_how_gradients_meet_is_the_same_throughout(kind: str, merge: str) -> None:
    assert {moment(of_kind(kind), p).merge for p in (0.0, 0.3, 1.0)} == {merge}


def test_few_tokens_are_read_until_the_last_stage() -> None:
    config = of_kind("few_tokens")
    assert [moment(config, p).tokens for p in (0.0, 0.3, 0.59, 0.6, 1.0)] == [FEW] * 3 + [1] * 2
    assert [stage(config, p) for p in (0.0, 0.3, 0.6)] == [2, 2, 3]  # it has no stage of its own before


def test_projections_come_first_until_the_last_stage() -> None:
    config = of_kind("projections_first")
    assert [moment(config, p).tokens for p in (0.0, 0.3, 0.59, 0.6, 1.0)] == [0] * 3 + [1] * 2
    assert [flat(loss_weights(config, p)) for p in (0.0, 1.0)] == [[1] * 3 + [0] * 6] * 2


def test_detail_on_top_adds_late_interaction_and_nothing_to_match() -> None:
    config = of_kind("detail_on_top")
    assert [moment(config, p).tokens for p in (0.0, 0.3, 0.59, 0.6, 1.0)] == [0] * 3 + [1] * 2
    assert [flat(loss_weights(config, p)) for p in (0.0, 0.3, 1.0)] == [
        [1] * 3 + [0] * 6,
        [1] * 6 + [0] * 3,
        [1] * 6 + [0] * 3,
    ]
    assert on_top(config) and not any(on_top(of_kind(kind)) for kind in ("projections_first", "detail_later"))


def test_codes_come_in_between_the_stages() -> None:
    config = of_kind("codes_later")
    assert [code_share(config, p) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert [moment(config, p).all_codes for p in (0.0, 0.59, 0.6)] == [False, False, True]
    assert code_share(of_kind("progressive"), 0.1) == 1


def test_the_temperature_falls_in_equal_ratios_to_the_hardest() -> None:
    config = of_kind("hardening")
    found = [highest_temperature(config, 0.12, p) for p in (0.0, 0.5, 1.0)]
    assert found == pytest.approx([0.12, (0.12 * HARDEST) ** 0.5, HARDEST])
    assert highest_temperature(config, 0.02, 0.7) == 0.02  # one that begins harder never rises
    assert highest_temperature(of_kind("contrastive_only"), 0.12, 0.5) is None


def test_what_is_aligned_first_holds_still_for_what_comes_later() -> None:
    config = of_kind("anchor_first")
    assert still_sides(config, STAGES) == {AUDIO_TEXT: "text", IMAGE_AUDIO: "image"}
    assert still_sides(of_kind("progressive"), STAGES) == {}
    before, after = (loss_weights(config, p) for p in (0.2, 0.3))
    assert flat(before) == [1, 0, 0] + [0] * 6
    assert flat(after) == [1] * 3 + [0] * 6
    assert [stage(config, p) for p in (0.1, 0.2)] == [1, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_progressive_kind_changes_the_learning_rate_and_only_new_kinds_the_step(kind: str) -> None:
    config = of_kind(kind)
    rates = {learning_rate_factor(config, p) for p in (0.0, 0.3, 0.9)}
    assert (len(rates) == 1) == (kind != "progressive")
    if kind in ("progressive", "joint", "contrastive_only"):
        assert {moment(config, p) for p in (0.0, 0.3, 0.9)} == {Moment()}
