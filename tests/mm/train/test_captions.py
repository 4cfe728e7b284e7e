"""Captions are written in training: what learns, and what it sees."""

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
    assert len(gradients) == 6 and all(g is not None and g.abs().sum() > 0 for g in gradients.values())


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


def test_the_term_can_be_off(task: AlignTask, tiny_batch: Callable[..., Batch]) -> None:
    task.loss.config = LossConfig(caption=0.0)
    assert not [name for name in task.find(tiny_batch())[0].terms if name.startswith("caption")]
