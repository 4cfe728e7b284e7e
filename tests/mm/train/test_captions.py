"""Captions are written in training: what learns, and what it sees."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from alignment import LossConfig
from mm.batch import Batch
from mm.config import AlignConfig
from mm.train.task import AlignTask


@pytest.fixture
def task(tiny: AlignConfig, tiny_task: Callable[..., AlignTask]) -> AlignTask:
    schedule = replace(tiny.schedule, kind="contrastive_only")
    return tiny_task(model=replace(tiny.model, generate=True), schedule=schedule)


def test_a_term_for_each_modality_that_captions_describe(task: AlignTask, tiny_batch: Callable[..., Batch]) -> None:
    terms, _, load = task.find(tiny_batch())
    assert terms.weights["caption/image"] == terms.weights["caption/audio"] == 1.0
    # An untrained model foretells nothing: as many nats as its vocabulary has.
    rows = len(task.model.encoders["text"].trunk.embedding())
    assert abs(terms.terms["caption/image"].item() - torch.tensor(rows).log().item()) < 0.2
    plain = sum(task.read(tiny_batch()).load.flatten().tolist())
    assert load.sum() > plain  # what is written passes the experts as well
    terms.total.backward()
    gradients = {name: p.grad for name, p in task.named_trainable() if "causal" in name}
    assert len(gradients) == 7 and all(g is not None and g.abs().sum() > 0 for g in gradients.values())


def test_captions_are_learned_from_what_they_describe(task: AlignTask, tiny_batch: Callable[..., Batch]) -> None:
    batch = tiny_batch(rows=5)
    optimizer = torch.optim.AdamW(task.parameters(), 1e-2)
    values = []
    for _ in range(40):
        terms, _, _ = task.find(batch)
        terms.terms["caption/image"].backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(terms.terms["caption/image"].detach()))
    assert min(values[-5:]) < 0.4 * values[0]


def test_absent_images_and_captions_do_not_count(task: AlignTask, tiny_batch: Callable[..., Batch]) -> None:
    batch = tiny_batch()
    batch.present["image"] = torch.tensor([True, False, True, True])
    batch.present["text"] = torch.tensor([True, True, False, True])
    before, _, _ = task.find(batch)
    batch.inputs["image"][1] = 0
    batch.inputs["text"][2] = batch.inputs["text"][0]
    after, _, _ = task.find(batch)
    torch.testing.assert_close(after.terms["caption/image"], before.terms["caption/image"])
    after.terms["caption/image"].backward()
    assert all(p.grad.isfinite().all() for _, p in task.named_trainable() if p.grad is not None)


def test_only_what_was_observed_is_written(task: AlignTask, tiny_batch: Callable[..., Batch]) -> None:
    batch = tiny_batch()
    assert task.writer is not None
    ids = batch.inputs["text"][:, 1:]
    rows = task.model.encoders["text"].rows(ids)
    seldom = rows[0, 1]
    task.writer.causal.vocabulary = rows[rows != seldom].unique()
    places, written = task.writer.labels(ids)
    assert torch.equal(written, rows != seldom)
    assert torch.equal(task.writer.ids_of(places)[written], ids[written])
    # Of an untrained model, as many nats as are written: the others cost nothing, and are not asked for.
    value = task.find(batch)[0].terms["caption/image"].item()
    assert abs(value - math.log(len(task.writer.causal.vocabulary))) < 0.2


def test_padding_costs_no_logits(task: AlignTask, tiny_batch: Callable[..., Batch]) -> None:
    batch = tiny_batch()
    assert task.writer is not None
    real = batch.masks["text"][:, 1:]
    sizes = []
    task.writer.causal.leave.register_forward_hook(lambda _, inputs, output: sizes.append(len(output)))
    task.find(batch)
    assert not real.all() and sizes == [int(real.sum())] * 2  # beside images and beside sounds


def test_the_token_outweighs_what_is_the_same_for_all(task: AlignTask, tiny_batch: Callable[..., Batch]) -> None:
    assert task.writer is not None
    table = task.model.encoders["text"].trunk.embedding()
    x = task.writer.causal.embed(table, torch.zeros(len(table), dtype=torch.int64))
    assert x.std(0).mean() > x.mean(0).std()


def test_text_is_continued_from_text_alone(task: AlignTask, tiny_batch: Callable[..., Batch]) -> None:
    batch = tiny_batch()
    batch.present["text"] = torch.tensor([True, True, False, True])
    for block in task.model.backbone.blocks:  # which begin by taking nothing from what is described
        torch.nn.init.normal_(block.cross_attention.out_proj.weight)
    assert "continuation" not in task.find(batch)[0].terms
    task.loss.config = LossConfig(caption=0.0, continuation=0.5)
    before, _, load = task.find(batch)
    assert before.weights["continuation"] == 0.5 and load.sum() > task.read(batch).load.sum()
    batch.inputs["image"] = batch.inputs["image"].flip(0)
    batch.inputs["text"][2] = batch.inputs["text"][0]  # of a caption that is not there
    after, _, _ = task.find(batch)
    assert torch.equal(after.terms["continuation"], before.terms["continuation"])
    batch.inputs["text"][1] = batch.inputs["text"][0]
    assert not torch.equal(task.find(batch)[0].terms["continuation"], before.terms["continuation"])


def test_the_term_can_be_off(task: AlignTask, tiny_batch: Callable[..., Batch]) -> None:
    task.loss.config = LossConfig(caption=0.0)
    assert not [name for name in task.find(tiny_batch())[0].terms if name.startswith("caption")]
