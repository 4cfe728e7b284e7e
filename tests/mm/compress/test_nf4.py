"""Weights in four bits on this processor: what they take, what they keep, and adapters on top of them."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")

from mm.artifacts.run import Run
from mm.batch import Batch
from mm.compress.lora import LoraConfig, adapter_tensors, attach, merge, merge_and_unload
from mm.compress.nf4 import NF4, dequantize, is_quantized, quantize

TARGETS = LoraConfig(rank=4, targets=("q_proj", "w_in"))


@torch.no_grad()
def embeddings(run: Run, batch: Batch) -> torch.Tensor:
    found = run.eval().model(batch, reconstruct=False).embeddings
    return torch.cat([v.flatten() for v in found.values()])


def test_packed_weights_are_close_to_what_they_were(tiny_run: Callable[..., Run]) -> None:
    model, plain = tiny_run().model, tiny_run().model
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


def test_names_that_are_skipped_stay_as_they_are(tiny_run: Callable[..., Run]) -> None:
    packed = quantize(tiny_run().model, skip=("encoders.", "backbone.blocks.0."))
    assert packed and all(name.startswith(("backbone.blocks.1.", "match_head.", "project", "pool")) for name in packed)


def test_adapters_train_on_packed_weights_and_merge_into_plain_ones(
    tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch]
) -> None:
    run, batch = tiny_run(), tiny_batch()
    names = run.model.state_dict().keys()
    quantize(run.model)
    before = embeddings(run, batch)
    found = attach(run.model, TARGETS)
    assert found.targeted["backbone.blocks.0.moe.w_in"] == (8, 16, 32)
    torch.testing.assert_close(embeddings(run, batch), before, atol=1e-5, rtol=0)
    trained = [p for p in run.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    for tensors in adapter_tensors(run.model):
        for tensor in tensors.values():
            torch.nn.init.normal_(tensor, std=0.1)
    run.model(batch, reconstruct=False).embeddings["image"].sum().backward()
    optimizer.step()
    adapted = embeddings(run, batch)
    assert (adapted - before).abs().max() > 1e-3
    with pytest.raises(ValueError, match="packed in four bits"):
        merge(run.model)
    merge_and_unload(run.model)
    dequantize(run.model)
    assert run.model.state_dict().keys() == names and not is_quantized(run.model)
    torch.testing.assert_close(embeddings(run, batch), adapted, atol=1e-5, rtol=0)


def test_scales_are_in_the_state_and_another_model_reads_them(
    tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch]
) -> None:
    run, other, batch = tiny_run(), tiny_run(), tiny_batch()
    for block in other.model.backbone.blocks:
        torch.nn.init.normal_(block.moe.w_in)
    for each in (run, other):
        quantize(each.model)
    state = run.model.state_dict()
    assert state["backbone.blocks.0.moe.parametrizations.w_in.0.absmax"].dtype == torch.uint8
    other.model.load_state_dict(state)
    torch.testing.assert_close(embeddings(other, batch), embeddings(run, batch), atol=0, rtol=0)


def test_scales_follow_the_packed_bytes_to_a_device(tiny_run: Callable[..., Run]) -> None:
    model = tiny_run().model
    quantize(model)
    model.to("meta")
    packing = next(module for module in model.modules() if isinstance(module, NF4))
    state = packing.state()
    tables = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    assert {table.device.type for table in tables} == {"meta"}
