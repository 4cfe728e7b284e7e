"""One step: named terms, guards that say what broke, biases that move, and draws that only the step decides."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from alignment import ScheduleConfig
from mm.artifacts.run import Run
from mm.batch import Batch
from mm.bench.step import StandingTask
from mm.config import AlignConfig
from mm.train.finite import check_finite
from mm.train.task import AlignTask


class AtStep(AlignTask):
    """A task that believes to be at a given step, without a trainer."""

    step = 0

    @property
    def global_step(self) -> int:  # type: ignore[override]
        return self.step


@pytest.fixture
def task(tiny: AlignConfig, tiny_run: Callable[..., Run]) -> AtStep:
    return AtStep(tiny_run(loss=replace(tiny.loss, filip_rows=3, itm_rows=3)))


def losses(task: AlignTask, batch: Batch):  # type: ignore[no-untyped-def]
    task.seed_step()
    return task.losses(task.model(batch), batch)


def test_terms_come_with_the_stages_of_the_step(task: AtStep, tiny_batch: Callable[..., Batch]) -> None:
    modalities = ("image", "audio", "text")
    always = {f"{kind}/{m}" for kind in ("commitment", "reconstruction") for m in modalities} | {"router/z"}
    counts = []
    for task.step in (0, 3, 9):
        terms, _ = losses(task, tiny_batch())
        pairs = terms.terms.keys() - always
        assert always < terms.terms.keys() and "contrastive/image_text" in pairs
        counts.append(len(pairs))
    assert counts == [1, 6, 12]  # of 10 steps, stage 2 from 1.5 and stage 3 from 4


def test_the_total_has_a_gradient_for_every_parameter(task: AtStep, tiny_batch: Callable[..., Batch]) -> None:
    """At the end of the run nothing is dead: not an encoder, a decoder, a head, a temperature."""
    task.step = 9
    losses(task, tiny_batch(6))[0].total.backward()
    without = [n for n, p in task.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


def taught(task: AlignTask, batch: Batch, terms: tuple[str, ...]) -> set[str]:
    """Names of the parameters that have a gradient of these terms."""
    task.seed_step()
    found, _ = task.losses(task.read(batch), batch)
    chosen = [value for name, value in found.terms.items() if name.startswith(terms)]
    assert chosen
    task.zero_grad(set_to_none=True)
    torch.stack(chosen).sum().backward()
    return {name for name, p in task.named_parameters() if p.grad is not None and bool(p.grad.any())}


DETAIL = ("filip", "code_match", "itm")


def test_detail_that_is_apart_teaches_nothing_that_contrastive_terms_read(
    tiny: AlignConfig, tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch]
) -> None:
    loss = replace(tiny.loss, filip_rows=3, itm_rows=3)
    model = replace(tiny.model, direct=True)
    task = AtStep(tiny_run(loss=loss, model=model, schedule=ScheduleConfig("detail_apart", stage2=0.0, stage3=0.9)))
    task.train()
    task.step = 5
    own = ("project_tokens", "match_head", "cross_", "filip", "code_match")
    shared = taught(task, tiny_batch(6), ("contrastive",))
    late = taught(task, tiny_batch(6), DETAIL)
    assert late and shared and not late & shared
    assert all(any(part in name for part in own) for name in late)
    task.step = 9
    opened = taught(task, tiny_batch(6), DETAIL)
    assert {n for n in shared if ".trunk." in n} <= opened and late <= opened


@pytest.mark.parametrize("kind", ["detail_projected", "detail_balanced"])
def test_where_gradients_meet_the_detail_alone_changes_by_the_fork_only(
    kind: Any, tiny: AlignConfig, tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch]
) -> None:
    """Detail without contrastive terms: it is nobody's conflict, and longer than nothing."""
    loss = replace(tiny.loss, filip_rows=3, itm_rows=3)
    task = AtStep(tiny_run(loss=loss, schedule=ScheduleConfig(kind, stage2=0.0, stage3=0.0)))
    task.train()
    task.step = 9
    reaches = any(".trunk." in name for name in taught(task, tiny_batch(6), DETAIL))
    assert reaches == (kind == "detail_projected")


def test_detail_on_top_teaches_the_trunks_tokens_and_no_embedding(
    tiny: AlignConfig, tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch]
) -> None:
    loss = replace(tiny.loss, filip_rows=3, code_match=0)
    model = replace(tiny.model, direct=True, token_head=8)
    task = AtStep(tiny_run(loss=loss, model=model, schedule=ScheduleConfig("detail_on_top", stage2=0.0, stage3=0.9)))
    task.train()
    task.step = 5
    found = taught(task, tiny_batch(6), ("filip",))
    heads = {name.split(".")[1] for name in found if name.startswith("model.") and ".encoders." not in name}
    assert heads == {"direct_tokens"} and any(name.startswith("loss.filip") for name in found)
    assert not any(name.startswith("loss.contrastive") for name in found)
    task.step = 9  # the backbone's tokens are added, from zero
    assert "model.project_tokens.text.weight" in taught(task, tiny_batch(6), ("filip",))


def test_audio_reads_anchors_that_hold_still(tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch]) -> None:
    task = AtStep(tiny_run(schedule=ScheduleConfig("anchor_first", stage2=0.0)))
    task.train()
    task.step = 9
    found = taught(task, tiny_batch(6), ("contrastive/audio_text", "contrastive/image_audio"))
    assert any(name.startswith("model.encoders.audio.trunk") for name in found)
    assert not any(
        name.startswith(("model.encoders.image", "model.encoders.text", "model.project.text")) for name in found
    )
    anchors = taught(task, tiny_batch(6), ("contrastive/image_text",))
    assert any(name.startswith("model.encoders.text.trunk") for name in anchors)


def test_rows_without_codes_have_no_gradient_of_the_quantizer_s_output(
    tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch]
) -> None:
    task = AtStep(tiny_run(schedule=ScheduleConfig("codes_later", stage2=0.5, stage3=0.5)))
    task.train()
    up = {f"model.encoders.{m}.bottleneck.up.weight" for m in ("image", "audio", "text")}
    task.step = 0
    assert not up & taught(task, tiny_batch(6), ("contrastive",))
    task.step = 5
    assert up <= taught(task, tiny_batch(6), ("contrastive",))


def test_the_contrastive_temperature_follows_a_schedule_that_hardens(
    tiny: AlignConfig, tiny_run: Callable[..., Run]
) -> None:
    task = AtStep(tiny_run(schedule=ScheduleConfig("hardening")))
    found = []
    for task.step in (0, 5, 10, 5):
        task.clamp_scales()
        found.append(task.loss.contrastive["image_text"].scale.item())
    assert found == pytest.approx([10, (10 / 0.03) ** 0.5, 1 / 0.03, 1 / 0.03])  # what was reached stays


def test_a_batch_of_one_image_is_refused_where_pairs_are_matched(
    task: AtStep, tiny_batch: Callable[..., Batch]
) -> None:
    batch = tiny_batch(3)
    batch.ids.fill_(5)
    assert task.on_before_batch_transfer(batch, 0) is batch
    task.step = 9
    assert task.on_before_batch_transfer(tiny_batch(3), 0)
    with pytest.raises(ValueError, match="a batch of 3 with one image has no negative pair: use a larger batch"):
        task.on_before_batch_transfer(batch, 0)


def test_load_counts_the_joint_forwards_too(task: AtStep, tiny_batch: Callable[..., Batch]) -> None:
    batch = tiny_batch(4)
    alone = task.model(batch).load
    task.step = 9
    assert (losses(task, batch)[1].sum((1, 2)) > alone.sum((1, 2))).all()


def test_what_a_step_draws_depends_on_seed_and_step_alone(task: AtStep) -> None:
    def draw(step: int, seed: int = 0) -> list[float]:
        task.step, task.config = step, replace(task.config, seed=seed)
        task.seed_step()
        return torch.rand(3).tolist()

    first = draw(4)
    torch.manual_seed(99)
    assert draw(4) == first
    assert draw(5) != first and draw(4, seed=1) != first


def test_a_term_that_is_not_finite_is_named(task: AtStep, tiny_batch: Callable[..., Batch]) -> None:
    terms, _ = losses(task, tiny_batch())
    check_finite(terms, 7)
    terms.add("itm/image_text", torch.tensor(float("nan")), 1.0)
    with pytest.raises(FloatingPointError, match=r"step 7: itm/image_text is not finite.*--resume true") as stopped:
        check_finite(terms, 7)
    assert "\n" not in str(stopped.value)


def test_a_gradient_that_breaks_is_named(task: AtStep) -> None:
    optimizer = task.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
    for p in task.parameters():
        p.grad = torch.zeros_like(p)
    task.model.match_head.net[0].weight.grad[0, 0] = float("inf")  # type: ignore[index,union-attr]
    with pytest.raises(FloatingPointError, match=r"gradient of model\.match_head\.net\.0\.weight is not finite"):
        task.configure_gradient_clipping(optimizer)


def test_clipping_bounds_the_norm_and_zero_switches_it_off(task: AtStep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "log", lambda *a, **k: None)
    norms = []
    for clip in (1.0, 0.0):
        task.config = replace(task.config, optim=replace(task.config.optim, clip=clip))
        optimizer = task.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
        for p in task.parameters():
            p.grad = torch.ones_like(p)
        task.configure_gradient_clipping(optimizer)
        norms.append(torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None]).norm().item())
    assert norms[0] == pytest.approx(1, rel=1e-3) and norms[1] > 100


def test_the_learning_rate_of_a_run_falls_with_the_stages(task: AtStep) -> None:
    optim = replace(task.config.optim, warmup=0.0, final=1.0)
    schedule = replace(task.config.schedule, stage2=0.3, stage3=0.6)
    task.config = replace(task.config, optim=optim, schedule=schedule)
    found = task.configure_optimizers()
    optimizer, scheduler = found["optimizer"], found["lr_scheduler"]["scheduler"]  # type: ignore[index,call-overload]
    rates = []
    for _ in range(10):
        rates.append(round(optimizer.param_groups[0]["lr"] / optim.learning_rate, 3))
        optimizer.step()
        scheduler.step()
    assert sorted(set(rates), reverse=True) == [1.0, 0.8, 0.64] and rates == sorted(rates, reverse=True)


def test_biases_move_against_the_step_s_load(task: AtStep) -> None:
    load = torch.zeros(2, 3, 8)
    load[:, :, 3] = 5
    task.rebalance(load)
    assert not any(block.moe.router.bias.any() for block in task.model.backbone.blocks)
    task.on_after_backward()
    assert all(block.moe.router.bias.argmin() == 3 for block in task.model.backbone.blocks)


def stepped(task: AtStep, batches: list[Batch]) -> list[dict[str, torch.Tensor]]:
    """The gradients of a step on each batch; the weights and the routing biases move in between."""
    task.train()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    found = []
    for batch in batches:
        task.seed_step()
        terms, load = task.losses(task.read(batch), batch)
        task.rebalance(load)
        terms.total.backward()
        task.on_after_backward()
        gradients = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
        found.append(gradients)
        optimizer.step()
        optimizer.zero_grad()
        task.step += 1
    return found


def test_checkpointing_changes_no_bit_of_two_steps(
    tiny: AlignConfig, tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch]
) -> None:
    """Biases that move by as much as an affinity would route the recomputed tokens elsewhere; one clip is absent."""
    batches = [tiny_batch(6, seed) for seed in (0, 1)]
    for batch in batches:
        batch.present["audio"][2] = False
        batch.masks["audio"][2] = False
        batch.inputs["audio"][2] = 0
    found = []
    for checkpoint in (False, True):
        moe = replace(tiny.model.backbone.moe, bias_rate=0.5)
        backbone = replace(tiny.model.backbone, moe=moe, dropout=0.1, checkpoint=checkpoint)
        model = replace(tiny.model, backbone=backbone)
        task = AtStep(tiny_run(model=model, loss=replace(tiny.loss, filip_rows=3, itm_rows=3)))
        task.step = 7
        found.append(stepped(task, batches))
    for plain, recomputed in zip(*found, strict=True):
        assert plain.keys() == recomputed.keys() and "model.backbone.blocks.0.moe.w_in" in plain
        assert not [name for name, gradient in plain.items() if not torch.equal(gradient, recomputed[name])]


def test_temperatures_are_in_their_range_after_every_step(task: AtStep, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(task: AtStep, far: float) -> None:
        with torch.no_grad():
            task.loss.contrastive["image_text"].log_scale.fill_(far)

    monkeypatch.setattr("lightning.LightningModule.optimizer_step", step)
    task.optimizer_step(9.0)
    assert task.loss.contrastive["image_text"].scale.item() == pytest.approx(100, rel=1e-3)
    task.optimizer_step(2.0)
    assert task.loss.contrastive["image_text"].log_scale.item() == 2


def test_without_layers_a_step_reports_no_experts(
    tiny: AlignConfig, tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch]
) -> None:
    backbone = replace(tiny.model.backbone, layers=0)
    bottleneck = replace(tiny.bottleneck, mode="continuous")
    task = StandingTask(tiny_run(model=replace(tiny.model, backbone=backbone), bottleneck=bottleneck), 0.0)
    logged: dict[str, float] = {}
    task.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[method-assign, assignment]
    task.train().training_step(tiny_batch(), 0).backward()
    task.on_after_backward()
    assert "train/contrastive/image_text" in logged and not any(name.startswith("experts/") for name in logged)
