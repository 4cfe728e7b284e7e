"""Attention that is computed again to be shown is that of the forward."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from mm.artifacts.run import Run
from mm.batch import Batch
from mm.config import AlignConfig
from mm.model.attention_maps import attends_across, cross_attention_maps, written_attention_maps
from mm.model.causal import Whole
from mm.model.multimodal import MatchInput
from mm.model.packed import Span, masked_look
from mm.model.writer import Writer
from mm.train.task import AlignTask


@pytest.fixture
def model(tiny_task: Callable[..., AlignTask], tiny_batch: Callable[..., Batch]) -> nn.Module:
    model = tiny_task().model
    model(tiny_batch())  # the codebooks have seen data
    return model.eval()


@pytest.mark.parametrize("biased", [False, True])
def test_weights_times_values_are_the_output_of_attention(model: nn.Module, biased: bool) -> None:
    attention = model.backbone.blocks[0].self_attention
    if biased:
        attention.add_term_bias()
        attention.term_bias.data += torch.tensor([1.0, -2.0])
    x = torch.randn(2 * 3 + 2 * 5, 32)
    queries, context = Span(0, 2, 3), Span(6, 2, 5)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    look = masked_look(queries, [context], mask, torch.arange(5).expand(2, 5) == 1 if biased else None)
    weights = attention.weights(x, look)
    assert weights.shape == (2, 2, 3, 5) and not weights[1, :, :, 2:].any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 3))
    values = attention.project(x)[2][6:].view(2, 5, 2, 16).transpose(1, 2)
    expected = attention.out_proj((weights @ values).transpose(1, 2).flatten(2)).view(6, 32)
    torch.testing.assert_close(attention(x, [look]), expected)


def test_maps_are_what_matching_computes_in_every_layer(
    model: nn.Module, tiny_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward is watched: what it hands to cross-modal attention gives the same weights."""
    assert not attends_across(model)
    for block in model.backbone.blocks:
        nn.init.normal_(block.cross_attention.out_proj.weight)
    assert attends_across(model)
    batch = tiny_batch()
    left, right = model.encode(batch, "image"), model.encode(batch, "text")
    maps = cross_attention_maps(model, MatchInput("image", "text", left, right))
    assert maps.shape == (4, 2, 2, right.mask.shape[1], left.mask.shape[1])
    seen = []
    for block in model.backbone.blocks:
        block.cross_attention.register_forward_pre_hook(lambda module, given: seen.append((module, *given)))
    with torch.inference_mode():
        model.match([MatchInput("image", "text", left, right)])
        for layer, (attention, x, looks) in enumerate(seen):
            (look,) = [look for look in looks if look.queries.length == right.mask.shape[1]]
            torch.testing.assert_close(maps[:, layer], attention.weights(x, look))
    assert len(seen) == 2


def test_written_maps_are_what_writing_computes_in_every_layer(
    tiny: AlignConfig,
    tiny_run: Callable[..., Run],
    tiny_batch: Callable[..., Batch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reading is watched: what it looks with gives the same weights, whether or not it counts yet."""
    run = tiny_run(model=replace(tiny.model, generate=True)).eval()
    batch = tiny_batch()
    writer = Writer(run.model)
    ids = batch.inputs["text"][:, :4]
    with torch.inference_mode():
        condition = writer.condition(batch, ["image"])
    maps = written_attention_maps(writer, ids, condition)
    assert maps.shape == (4, 2, 2, 3, condition.mask.shape[1])
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    seen: list[tuple[torch.Tensor, ...]] = []
    for block in run.model.backbone.blocks:
        look = block.cross_attention.look

        def watched(*given: torch.Tensor, look: Callable[..., torch.Tensor] = look) -> torch.Tensor:
            seen.append(given)
            return look(*given)

        monkeypatch.setattr(block.cross_attention, "look", watched)
    real = torch.ones(4, 3, dtype=torch.bool)
    with torch.inference_mode():
        writer.read(ids[:, :-1], real, Whole(real), torch.arange(3), condition)
        for layer, (q, keys, values, mask) in enumerate(list(seen)):
            weights = run.model.backbone.blocks[layer].cross_attention.look_weights(q, keys, mask)
            torch.testing.assert_close(maps[:, layer], weights)
            block = run.model.backbone.blocks[layer].cross_attention
            mixed = block.out_proj((weights @ values).transpose(1, 2).flatten(2))
            torch.testing.assert_close(mixed, block.look(q, keys, values, mask))
