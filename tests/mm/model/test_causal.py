"""Text that is written: what a token sees, with a cache and without."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mm.artifacts.run import Run
from mm.batch import Batch
from mm.config import AlignConfig
from mm.model.cache import Cache
from mm.model.causal import Condition, Whole
from mm.model.writer import Writer


@pytest.fixture
def writer(tiny: AlignConfig, tiny_run: Callable[..., Run]) -> Writer:
    """Of a model whose cross-modal attention is not zero any more."""
    run = tiny_run(model=replace(tiny.model, generate=True)).eval()
    for block in run.model.backbone.blocks:
        torch.nn.init.normal_(block.cross_attention.out_proj.weight, std=0.2)
    return Writer(run.model)


@pytest.fixture
def batch(tiny_batch: Callable[..., Batch]) -> Batch:
    return tiny_batch(rows=3)


def whole(writer: Writer, batch: Batch, condition: Condition | None, ids: Tensor | None = None) -> Tensor:
    """Logits (B, L, V) of a batch's texts, read whole."""
    mask = batch.masks["text"]
    ids = batch.inputs["text"] if ids is None else ids
    out = writer.read(ids, mask, Whole(mask), torch.arange(ids.shape[1]), condition)
    return writer.next_logits(out.x)


def cached(writer: Writer, batch: Batch, condition: Condition | None, cuts: list[int]) -> Tensor:
    """The same in pieces that end at `cuts`."""
    mask = batch.masks["text"]
    cache = writer.cache(len(mask))
    found = []
    for start, stop in zip([0, *cuts], [*cuts, mask.shape[1]], strict=True):
        new = cache.new(mask[:, start:stop].sum(1).tolist())
        ids = batch.inputs["text"][:, start : start + new.real.shape[1]]
        out = writer.read(ids, new.real, new, new.at.clamp(max=cache.context - 1), condition)
        new.keep()
        logits = writer.next_logits(out.x)
        found.append(torch.nn.functional.pad(logits, (0, 0, 0, stop - start - logits.shape[1])))
    return torch.cat(found, 1)


@pytest.mark.parametrize("cuts", [[], [1], [2, 3], [1, 2, 3, 4]], ids=str)
@pytest.mark.parametrize("modalities", [[], ["image"], ["image", "audio"]], ids=str)
@torch.inference_mode()
def test_a_cache_changes_nothing_wherever_the_text_is_cut(
    writer: Writer, batch: Batch, cuts: list[int], modalities: list[str]
) -> None:
    condition = writer.condition(batch, modalities) if modalities else None
    expected = whole(writer, batch, condition)
    real = batch.masks["text"]
    assert not real.all()  # texts of different lengths
    torch.testing.assert_close(cached(writer, batch, condition, cuts)[real], expected[real], atol=1e-5, rtol=1e-5)


class Called(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_attention_is_fused_in_prefill_in_decoding_and_beside_a_condition(writer: Writer, batch: Batch) -> None:
    condition = writer.condition(batch, ["image"])
    with Called() as called:
        cached(writer, batch, condition, [1, 2])
    # Three pieces, each of which looks at the text and at the condition in every block.
    fused = called.counts["aten::_scaled_dot_product_flash_attention_for_cpu"]
    assert fused == 3 * 2 * len(writer.blocks)
    assert not any("softmax" in name for name in called.counts)


@torch.inference_mode()
def test_a_token_is_seen_by_those_behind_it_alone(writer: Writer, batch: Batch) -> None:
    condition = writer.condition(batch, ["image"])
    before = whole(writer, batch, condition)
    for place in (1, 2, 4):
        ids = batch.inputs["text"].clone()
        ids[:, place] = ids[:, (place + 1) % 4]
        changed = whole(writer, batch, condition, ids)
        assert torch.equal(changed[:, :place], before[:, :place])
        assert not torch.equal(changed[:, place], before[:, place])


@torch.inference_mode()
def test_a_condition_does_not_depend_on_text_or_on_other_samples(writer: Writer, batch: Batch) -> None:
    condition = writer.condition(batch, ["image"])
    other = Batch(torch.arange(1))
    other.put("image", batch.inputs["image"][1:2])
    alone = writer.condition(other, ["image"])
    torch.testing.assert_close(alone.keys[1], condition.keys[1][1:2], atol=1e-5, rtol=1e-5)
    # Of the forward that embeds, text and all.
    seen = writer.model(batch, reconstruct=False).seen
    same = writer.condition_of(seen, ["image"])
    torch.testing.assert_close(same.values[1], condition.values[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole(writer, batch, condition), whole(writer, batch, None), atol=1e-3)


@torch.inference_mode()
def test_a_condition_that_is_absent_adds_nothing(writer: Writer, batch: Batch) -> None:
    batch.present["image"] = torch.tensor([True, False, True])
    condition = writer.condition(batch, ["image"])
    condition.mask[1] = False
    condition.attends[1] = False
    beside = whole(writer, batch, condition)
    torch.testing.assert_close(beside[1], whole(writer, batch, None)[1])
    assert torch.isfinite(beside).all()


@torch.inference_mode()
def test_a_slot_is_emptied_and_used_again(writer: Writer, batch: Batch) -> None:
    cache = writer.cache(2)
    ids = batch.inputs["text"][:1, :3]
    first = read_into(writer, cache, ids, 1)
    read_into(writer, cache, ids, 1)
    cache.clear(1)
    torch.testing.assert_close(read_into(writer, cache, ids, 1), first)
    assert cache.lengths == [0, 3]


@torch.inference_mode()
def test_padding_is_written_over_no_token_of_a_full_slot(writer: Writer, batch: Batch) -> None:
    words = batch.inputs["text"][0]
    long = words.repeat(12)[:12][None]
    alone, beside = writer.cache(1), writer.cache(2)
    read_into(writer, alone, long[:, :11], 0)
    read_into(writer, beside, long[:, :11], 0)
    expected = read_into(writer, alone, long[:, 11:], 0)
    new = beside.new([1, 3])
    ids = torch.cat([torch.cat([long[:, 11:], words[None, :2]], 1), words[None, :3]])
    out = writer.read(ids, new.real, new, new.at.clamp(max=11), None)
    torch.testing.assert_close(writer.next_logits(out.x)[:1, :1], expected)


@torch.inference_mode()
def test_beams_go_on_from_each_other(writer: Writer, batch: Batch) -> None:
    cache = writer.cache(2)
    for slot in range(2):
        read_into(writer, cache, batch.inputs["text"][slot : slot + 1, : 2 + slot], slot)
    cache.reorder([1, 1])
    assert cache.lengths == [3, 3]
    next_ids = batch.inputs["text"][2:3, 1:2]
    torch.testing.assert_close(read_into(writer, cache, next_ids, 0), read_into(writer, cache, next_ids, 1))


def read_into(writer: Writer, cache: Cache, ids: Tensor, slot: int) -> Tensor:
    new = cache.new([ids.shape[1]], slot)
    out = writer.read(ids, new.real, new, new.at, None)
    new.keep()
    return writer.next_logits(out.x)


def test_a_text_that_is_too_long_and_a_model_that_does_not_write_are_refused(
    writer: Writer, tiny: AlignConfig, tiny_run: Callable[..., Run]
) -> None:
    with pytest.raises(ValueError, match="13 tokens are more than the model's context of 12"):
        writer.cache(1).new([13])
    with pytest.raises(ValueError, match=r"does not write text: train it with model\.generate=true"):
        Writer(tiny_run().model)
    with pytest.raises(ValueError, match=r"it needs text among model\.modalities"):
        replace(tiny.model, generate=True, modalities=("image", "audio"))
    with pytest.raises(ValueError, match=r"it needs model\.backbone\.layers > 0"):
        replace(tiny.model, generate=True, backbone=replace(tiny.model.backbone, layers=0))
