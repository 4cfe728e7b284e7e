"""The schedule is a pure function of progress: nothing before a term's stage, everything after it, no jump between."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment import LossWeights, ScheduleConfig, learning_rate_factor, ramp, stage
from alignment import loss_weights as weights_of
from alignment.schedule import RAMP

CONFIG = ScheduleConfig("progressive", stage2=0.2, stage3=0.6)
IMAGE_TEXT = ("image", "text")
AUDIO_TEXT = ("audio", "text")
IMAGE_AUDIO = ("image", "audio")
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


@given(progresses, progresses)
def test_weights_rise_and_never_jump(a: float, b: float) -> None:
    low, high = sorted((a, b))
    steepest = 1.5 / RAMP  # of 3x² - 2x³
    for x, y in zip(flat(loss_weights(CONFIG, low)), flat(loss_weights(CONFIG, high)), strict=True):
        assert 0 <= x <= y <= 1
        assert y - x <= steepest * (high - low) + 1e-9


@given(progresses)
def test_the_same_progress_gives_the_same_weights_whatever_came_before(progress: float) -> None:
    first = loss_weights(CONFIG, progress)
    loss_weights(CONFIG, 1.0)
    assert loss_weights(CONFIG, progress) == first


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
