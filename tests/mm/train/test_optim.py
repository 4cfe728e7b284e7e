"""Who is trained at what rate, and the rate as a function of progress."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from alignment import ScheduleConfig
from mm.config import AlignConfig, OptimConfig
from mm.train.optim import build_optimizer, decays, learning_rate, parameter_groups, rate_factor
from mm.train.task import AlignTask

STAGES = ScheduleConfig("progressive", stage2=0.3, stage3=0.6)
FLAT = OptimConfig(warmup=0.0, final=1.0)


def test_every_trainable_parameter_is_in_exactly_one_group(
    tiny_task: Callable[..., AlignTask], tiny: AlignConfig
) -> None:
    task = tiny_task(image=replace(tiny.image, frozen=True))
    groups = parameter_groups(
        task.named_trainable(), OptimConfig(rates={"encoders.audio.*": 0.5, "*.text.trunk.*": 0.1})
    )
    counted = Counter(id(p) for group in groups for p in group["params"])
    trainable = {id(p) for p in task.parameters() if p.requires_grad}
    assert set(counted) == trainable and set(counted.values()) == {1}
    assert not any(id(p) in counted for p in task.model.encoders["image"].trunk.parameters())


def test_a_trunk_has_its_own_rate_and_the_rest_of_its_encoder_has_not(tiny_task: Callable[..., AlignTask]) -> None:
    task = tiny_task()
    config = OptimConfig(learning_rate=1.0, rates={"encoders.text.trunk.*": 0.1})
    groups = parameter_groups(task.named_trainable(), config)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, p in task.named_parameters():
        assert rate[id(p)] == (0.1 if name.startswith("model.encoders.text.trunk.") else 1.0), name


def test_matrices_decay_and_norms_biases_and_temperatures_do_not(tiny_task: Callable[..., AlignTask]) -> None:
    task = tiny_task()
    named = dict(task.named_parameters())
    moe = "model.backbone.blocks.0.moe"
    for name in (f"{moe}.w_in", f"{moe}.router.affinity", "model.match_head.net.0.weight"):
        assert decays(name, named[name])
    for name in (
        "model.match_head.net.0.bias",
        "model.backbone.norm.weight",
        "loss.contrastive.image_text.log_scale",
        "model.encoders.text.bottleneck.position",
        "loss.code_match.codebook",
        "model.backbone.modality.text",
    ):
        assert not decays(name, named[name])


def test_each_stage_multiplies_the_rate_by_its_factor() -> None:
    rates = [learning_rate(FLAT, STAGES, p) for p in (0.1, 0.29, 0.31, 0.7, 1.0)]
    assert rates == pytest.approx([1, 1, 0.8, 0.64, 0.64])
    assert learning_rate(FLAT, replace(STAGES, kind="joint"), 0.9) == 1


def test_warm_up_then_cosine_to_the_final_share() -> None:
    config, joint = OptimConfig(warmup=0.1, final=0.02), ScheduleConfig(kind="joint")
    assert learning_rate(config, joint, 0) == 0
    assert learning_rate(config, joint, 0.05) == pytest.approx(0.5)
    assert learning_rate(config, joint, 0.1) == pytest.approx(1)
    assert learning_rate(config, joint, 0.55) == pytest.approx(0.51)
    assert learning_rate(config, joint, 1) == pytest.approx(0.02)
    falling = [learning_rate(config, joint, 0.1 + 0.09 * i) for i in range(11)]
    assert falling == sorted(falling, reverse=True)


def test_the_optimizer_takes_the_groups_as_they_are(tiny_task: Callable[..., AlignTask]) -> None:
    task = tiny_task()
    config = OptimConfig(learning_rate=0.2, weight_decay=0.3, rates={"encoders.image.trunk.*": 0.5})
    found = build_optimizer(parameter_groups(task.named_trainable(), config)).param_groups
    assert {(g["lr"], g["weight_decay"]) for g in found} == {(lr, decay) for lr in (0.2, 0.1) for decay in (0.0, 0.3)}


def test_of_several_patterns_that_fit_the_last_counts() -> None:
    rates = {"encoders.*": 0.1, "encoders.text.*": 0.5}
    assert [rate_factor(name, rates) for name in ("encoders.image.x", "encoders.text.x", "pool.x")] == [0.1, 0.5, 1.0]
