"""Streams that see each other only when they should, and padding that nobody sees."""

from dataclasses import replace

import pytest
import torch

from mm.model.backbone import Backbone, BackboneConfig, BackboneOutput
from mm.model.moe import MoEConfig
from mm.model.packed import Reading, Stream

CONFIG = BackboneConfig(width=16, layers=2, heads=2, moe=MoEConfig(num_experts=6, top_k=2, hidden=4, shared=8))
LENGTHS = {"image": 4, "audio": 3, "text": 5}
MODALITIES = tuple(LENGTHS)


def build(config: BackboneConfig = CONFIG) -> Backbone:
    """One whose cross-modal attention has learned something: it starts at zero."""
    torch.manual_seed(0)
    backbone = Backbone(config, MODALITIES)
    for block in backbone.blocks:
        torch.nn.init.normal_(block.cross_attention.out_proj.weight)
    return backbone


def read(backbone: Backbone, reading: Reading, fuse: bool) -> tuple[Reading, BackboneOutput]:
    """One reading through a backbone, and all that comes out."""
    out = backbone([reading], fuse)
    return out.readings[0], out


def streams(*modalities: str, rows: int = 3, seed: int = 0) -> dict[str, Stream]:
    random = torch.Generator().manual_seed(seed)
    found = {m: torch.randn(rows, t, 16, generator=random) for m, t in LENGTHS.items()}
    masks = {m: torch.arange(t) < 2 + torch.arange(rows)[:, None] for m, t in LENGTHS.items()}
    return {m: Stream(found[m], masks[m]) for m in modalities or LENGTHS}


@pytest.mark.parametrize("fuse", [False, True])
def test_padding_changes_nothing(fuse: bool) -> None:
    """Longer padding full of garbage, on every stream: every real token comes out as before, and so does the load."""
    backbone, short = build(), streams()
    longer = {
        m: Stream(torch.cat([s.x, torch.full((3, 2, 16), 5.0)], 1), torch.cat([s.mask, torch.zeros(3, 2).bool()], 1))
        for m, s in short.items()
    }
    x, a = read(backbone, short, fuse)
    y, b = read(backbone, longer, fuse)
    for m, s in short.items():
        real = s.mask
        torch.testing.assert_close(y[m].x[:, : LENGTHS[m]][real], x[m].x[real])
    assert torch.equal(a.load, b.load)
    torch.testing.assert_close(a.losses, b.losses)


def test_without_fusion_streams_do_not_see_each_other() -> None:
    backbone, all_three = build(), streams()
    together, _ = read(backbone, all_three, fuse=False)
    for m, s in all_three.items():
        alone, _ = read(backbone, {m: s}, fuse=False)
        torch.testing.assert_close(alone[m].x[s.mask], together[m].x[s.mask])


def test_fusion_begins_as_no_fusion() -> None:
    backbone, both = Backbone(CONFIG, MODALITIES).eval(), streams("image", "text")
    for m, s in both.items():
        x, y = (read(backbone, both, fuse)[0][m].x[s.mask] for fuse in (False, True))
        torch.testing.assert_close(x, y)


def test_with_fusion_they_do() -> None:
    backbone, before, after = build(), streams("image", "text"), streams("image", "text")
    after["text"] = streams("text", seed=7)["text"]
    x, y = (read(backbone, s, True)[0]["image"].x for s in (before, after))
    assert not torch.allclose(x, y)
    x, y = (read(backbone, s, False)[0]["image"].x for s in (before, after))
    torch.testing.assert_close(x, y)


def test_one_modality_alone_never_passes_cross_attention() -> None:
    backbone = build()
    for block in backbone.blocks:
        block.cross_attention.forward = None  # any call would fail
    alone, _ = read(backbone, streams("text"), fuse=True)
    expected, _ = read(build(), streams("text"), fuse=False)
    torch.testing.assert_close(alone["text"].x, expected["text"].x)


def test_the_order_of_modalities_does_not_matter() -> None:
    backbone, forward = build(), streams()
    backward = dict(reversed(forward.items()))
    a, _ = read(backbone, forward, fuse=True)
    b, _ = read(backbone, backward, fuse=True)
    for m, s in forward.items():
        torch.testing.assert_close(a[m].x[s.mask], b[m].x[s.mask])


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    backbone, whole = build(), streams()
    first = {m: Stream(s.x[:1], s.mask[:1]) for m, s in whole.items()}
    a, _ = read(backbone, whole, fuse=True)
    b, _ = read(backbone, first, fuse=True)
    for m, s in first.items():
        torch.testing.assert_close(a[m].x[:1][s.mask], b[m].x[s.mask])


def test_gradient_checkpointing_gives_equal_gradients() -> None:
    plain, kept = build(), build(replace(CONFIG, checkpoint=True))
    for backbone in (plain, kept):
        found, out = read(backbone, streams(), fuse=True)
        (sum(s.x[s.mask].square().sum() for s in found.values()) + out.losses["z"]).backward()
    for (name, p), q in zip(plain.named_parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_with_dropout_checkpointing_draws_the_same_again() -> None:
    found = []
    for checkpoint in (False, True):
        backbone = build(replace(CONFIG, checkpoint=checkpoint, dropout=0.5)).train()
        torch.manual_seed(3)
        sum(s.x.sum() for s in read(backbone, streams(), True)[0].values()).backward()  # type: ignore[union-attr]
        found.append([p.grad for p in backbone.parameters()])
    torch.testing.assert_close(found[0], found[1])


def test_load_is_tokens_times_active_for_each_layer_and_modality() -> None:
    given = streams()
    load = read(build(), given, fuse=True)[1].load
    expected = [2.0 * given[m].mask.sum().item() for m in ("image", "audio", "text")]
    assert load.shape == (2, 3, 6) and load.sum(2).tolist() == [expected, expected]


def test_rebalancing_moves_each_layer_by_its_own_load() -> None:
    backbone = build()
    load = torch.zeros(2, 3, 6)
    load[0, 0, 1], load[1, 2, 4] = 10, 10
    backbone.rebalance(load)
    first, second = (block.moe.router.bias for block in backbone.blocks)
    assert first.argmin() == 1 and second.argmin() == 4 and (first < 0).sum() == (second < 0).sum() == 1


def test_a_stream_of_padding_alone_stays_finite() -> None:
    given = streams("image", "audio")
    given["audio"].mask = torch.zeros_like(given["audio"].mask)
    found, _ = read(build(), given, fuse=True)
    alone, _ = read(build(), {"image": given["image"]}, fuse=True)
    real = given["image"].mask
    assert all(s.x.isfinite().all() for s in found.values())
    torch.testing.assert_close(found["image"].x[real], alone["image"].x[real])


def test_modality_embeddings_are_in_the_order_of_older_checkpoints() -> None:
    """By name: an optimizer's stored state is by position, and the gradient norm is summed in this order."""
    names = [name for name, _ in build().named_parameters() if name.startswith("modality.")]
    assert names == ["modality.audio", "modality.image", "modality.text"]


def test_without_layers_tokens_are_tagged_and_normed_and_no_expert_is_asked() -> None:
    backbone, given = build(replace(CONFIG, layers=0)), streams()
    found, out = read(backbone, given, fuse=True)
    for m, stream in given.items():
        torch.testing.assert_close(found[m].x, backbone.norm(stream.x + backbone.modality[m]))
    assert out.losses == {} and out.load.shape == (0, 3, 6)
