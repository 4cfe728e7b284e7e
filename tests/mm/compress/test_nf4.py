"""Weights in four bits on this processor: what they take, what they keep, and adapters on top of them."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")

from mm.adapt.lora import LoraConfig, adapter_tensors, attach, merge, merge_and_unload
from mm.batch import Batch
from mm.compress.nf4 import NF4, dequantize, is_quantized, ledger, quantize
from mm.train.task import AlignTask

TARGETS = LoraConfig(rank=4, targets=("q_proj", "w_in"))


@torch.no_grad()
def embeddings(task: AlignTask, batch: Batch) -> torch.Tensor:
    found = task.eval().model(batch, reconstruct=False).embeddings
    return torch.cat([v.flatten() for v in found.values()])


def test_packed_weights_are_close_to_what_they_were(tiny_task: Callable[..., AlignTask]) -> None:
    model, plain = tiny_task().model, tiny_task().model
    packed = quantize(model)
    assert is_quantized(model) and not is_quantized(plain)
    assert "backbone.blocks.0.moe.w_in" in packed and "backbone.blocks.1.self_attention.k_proj.weight" in packed
    for read in (lambda m: m.backbone.blocks[0].moe.w_in, lambda m: m.backbone.blocks[0].self_attention.q_proj.weight):
        now, was = read(model), read(plain)
        assert now.shape == was.shape and 0 < (now - was).norm() / was.norm() < 0.15


@pytest.mark.parametrize("shape", [(8, 16, 32), (32, 96), (64, 64), (7, 13, 6), (5, 13)])
def test_rows_of_any_width_keep_their_scales(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packing = NF4()
    (packed,) = packing.right_inverse(weight)
    now = packing(packed)
    assert now.shape == weight.shape and (now - weight).norm() / weight.norm() < 0.12


def test_the_ledger_counts_every_weight_and_what_it_is_stored_in(tiny_task: Callable[..., AlignTask]) -> None:
    model = tiny_task().model
    before = {row.group: row for row in ledger(model)}
    assert before["all"].weights == sum(p.numel() for p in model.parameters()) and before["all"].bits == 32
    torch.nn.init.normal_(model.backbone.blocks[0].moe.w_in)
    quantize(model)
    after = {row.group: row for row in ledger(model)}
    assert {g: row.weights for g, row in after.items()} == {g: row.weights for g, row in before.items()}
    # Tables of 16 and 256 numbers for each tensor weigh on weights as small as these; half a byte is what remains.
    assert 4 < after["experts"].bits < 12 and after["router"].bits == 32


def test_names_that_are_skipped_stay_as_they_are(tiny_task: Callable[..., AlignTask]) -> None:
    packed = quantize(tiny_task().model, skip=("encoders.", "backbone.blocks.0."))
    assert packed and all(name.startswith(("backbone.blocks.1.", "match_head.", "project", "pool")) for name in packed)


def test_adapters_train_on_packed_weights_and_bake_into_plain_ones(
    tiny_task: Callable[..., AlignTask], tiny_batch: Callable[..., Batch]
) -> None:
    task, batch = tiny_task(), tiny_batch()
    names = task.model.state_dict().keys()
    quantize(task.model)
    before = embeddings(task, batch)
    found = attach(task.model, TARGETS)
    assert found.targeted["backbone.blocks.0.moe.w_in"] == (8, 16, 32)
    torch.testing.assert_close(embeddings(task, batch), before, atol=1e-5, rtol=0)
    trained = [p for p in task.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    for tensors in adapter_tensors(task.model):
        for tensor in tensors.values():
            torch.nn.init.normal_(tensor, std=0.1)
    task.model(batch, reconstruct=False).embeddings["image"].sum().backward()
    optimizer.step()
    adapted = embeddings(task, batch)
    assert (adapted - before).abs().max() > 1e-3
    with pytest.raises(ValueError, match="packed in four bits"):
        merge(task.model)
    merge_and_unload(task.model)
    dequantize(task.model)
    assert task.model.state_dict().keys() == names and not is_quantized(task.model)
    torch.testing.assert_close(embeddings(task, batch), adapted, atol=1e-5, rtol=0)
