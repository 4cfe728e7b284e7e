"""Two readings of one backbone: what embeds alone, what matches together, and what a parameter count means."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from alignment import Moment
from alignment.matching import matching_loss
from encoders import EncoderOutput
from mm.batch import Batch
from mm.config import AlignConfig
from mm.model.encoding import select
from mm.model.heads import AttentionPool, MatchHead
from mm.model.multimodal import MatchInput, ModelConfig
from mm.train.task import AlignTask


@pytest.fixture
def model(tiny_task: Callable[..., AlignTask], tiny_batch: Callable[..., Batch]) -> nn.Module:
    model = tiny_task().model
    model(tiny_batch())  # the codebooks have seen data
    return model.eval()


def rows(batch: Batch, chosen: slice) -> Batch:
    part = Batch(batch.ids[chosen])
    for m in batch.modalities:
        mask = batch.masks[m][chosen] if m in batch.masks else None
        part.put(m, batch.inputs[m][chosen], mask)
    return part


def test_embeddings_are_unit_vectors_of_every_modality(model: nn.Module, tiny_batch: Callable[..., Batch]) -> None:
    out = model(tiny_batch())
    for m in ("image", "audio", "text"):
        torch.testing.assert_close(out.embeddings[m].norm(dim=1), torch.ones(4))
        torch.testing.assert_close(out.tokens[m].norm(dim=2), torch.ones(out.tokens[m].shape[:2]))
        assert out.embeddings[m].shape == (4, 16) and out.tokens[m].shape == (*out.masks[m].shape, 8)


def test_a_longer_batch_changes_no_embedding(model: nn.Module, tiny_batch: Callable[..., Batch]) -> None:
    """The first caption is short: beside a longer one it is padded, and comes out the same."""
    batch = tiny_batch()
    whole, alone = model(batch), model(rows(batch, slice(0, 1)))
    short = rows(batch, slice(0, 1))
    length = int(short.masks["text"].sum())
    short.inputs["text"], short.masks["text"] = short.inputs["text"][:, :length], short.masks["text"][:, :length]
    cut = model(short)
    for m in ("image", "audio", "text"):
        torch.testing.assert_close(alone.embeddings[m], whole.embeddings[m][:1])
        torch.testing.assert_close(cut.embeddings[m], whole.embeddings[m][:1])


def test_a_modality_embeds_the_same_alone(model: nn.Module, tiny_batch: Callable[..., Batch]) -> None:
    batch = tiny_batch()
    together = model(batch).embeddings
    for m in ("image", "audio", "text"):
        torch.testing.assert_close(model(batch.select([m])).embeddings, {m: together[m]})


def test_match_depends_on_both_sides_and_not_on_the_batch(model: nn.Module, tiny_batch: Callable[..., Batch]) -> None:
    encoded = model(tiny_batch()).encoded
    image = encoded["image"]
    text = encoded["text"]
    first = torch.tensor([0])

    def match(image: EncoderOutput, text: EncoderOutput) -> Tensor:
        return model.match([MatchInput("image", "text", image, text)]).logits[0]

    logits = match(image, text)
    turned = match(image, select(text, torch.tensor([1, 2, 3, 0])))
    assert logits.shape == (4,) and not torch.isclose(logits, turned).any()
    torch.testing.assert_close(match(select(image, first), select(text, first)), logits[:1])


def test_pairs_of_modalities_are_matched_in_one_call_as_one_by_one(
    model: nn.Module, tiny_batch: Callable[..., Batch]
) -> None:
    encoded = model(tiny_batch()).encoded
    few = {m: select(e, torch.tensor([2, 0])) for m, e in encoded.items()}
    pairs = [
        MatchInput("image", "text", encoded["image"], encoded["text"]),
        MatchInput("audio", "text", few["audio"], few["text"]),
    ]
    together = model.match(pairs)
    each = [model.match([pair]) for pair in pairs]
    torch.testing.assert_close(together.logits, [out.logits[0] for out in each])
    assert torch.equal(together.load, sum(out.load for out in each))


@pytest.mark.parametrize("checkpoint", [False, True])
def test_matching_that_holds_teaches_what_embedding_does_not_read(
    checkpoint: bool, model: nn.Module, tiny_batch: Callable[..., Batch]
) -> None:
    """The cross-modal attention and the match head; what holds still then learns from the next forward."""
    model.backbone.checkpoint = checkpoint
    encoded = model(tiny_batch()).encoded
    tokens = {m: e.tokens.detach().requires_grad_() for m, e in encoded.items()}
    few = {m: replace(e, tokens=tokens[m], summary=e.summary.detach()) for m, e in encoded.items()}
    model.match([MatchInput("image", "text", few["image"], few["text"])], hold=True).logits[0].sum().backward()
    taught = {name for name, p in model.named_parameters() if p.grad is not None}
    assert taught and all("cross_" in name or name.startswith("match_head") for name in taught)
    assert len({name.split(".")[2] for name in taught if "cross_" in name}) == 2  # both layers
    assert all(p.requires_grad for p in model.parameters())
    assert tokens["image"].grad is not None  # the encoders are not held


def test_matching_moves_no_statistics_of_the_embedding_reading(
    model: nn.Module, tiny_batch: Callable[..., Batch]
) -> None:
    encoded = model.train()(tiny_batch()).encoded
    before = {name: value.clone() for name, value in model.project.named_buffers()}
    model.match([MatchInput("image", "text", encoded["image"], encoded["text"])])
    assert all(torch.equal(value, before[name]) for name, value in model.project.named_buffers())


def test_a_direct_reading_begins_as_the_trunks_alone(
    tiny: AlignConfig, tiny_task: Callable[..., AlignTask], tiny_batch: Callable[..., Batch]
) -> None:
    """Before training, neither the tokens nor the other side of a pair move an embedding; the summary does."""
    model = tiny_task(model=replace(tiny.model, direct=True)).model
    model(tiny_batch())
    model.eval()
    found = model(tiny_batch()).embeddings
    encode = model.encode

    def changed(change: Callable[[EncoderOutput], EncoderOutput]) -> dict[str, Tensor]:
        model.encode = lambda *arguments, **options: change(encode(*arguments, **options))
        return model(tiny_batch()).embeddings

    moved = changed(lambda e: replace(e, tokens=e.tokens.flip(0)))
    other = changed(lambda e: replace(e, summary=e.summary.flip(0)))
    torch.testing.assert_close(found, moved)
    torch.testing.assert_close({m: x.flip(0) for m, x in found.items()}, other)


def test_projections_that_come_first_are_what_the_rest_adds_to(
    tiny: AlignConfig, tiny_task: Callable[..., AlignTask], tiny_batch: Callable[..., Batch]
) -> None:
    """They embed as the whole untrained model does; nothing else learns or is counted; a row that lacks a modality
    changes no other."""
    model = tiny_task(model=replace(tiny.model, direct=True)).model
    batch = tiny_batch()
    batch.present["audio"][1] = False
    found = model(batch, moment=Moment(tokens=0.0))
    torch.testing.assert_close(found.embeddings, model(batch).embeddings)
    assert found.load.shape == (2, 3, 8) and not found.load.any() and not found.losses
    assert not any(e.losses or e.tokens.numel() for e in found.encoded.values())
    model.zero_grad()
    sum(x[0, 0] for x in found.embeddings.values()).backward()
    taught = {name for name, p in model.named_parameters() if p.grad is not None}
    allowed = ("direct.", "encoders.image.trunk.", "encoders.audio.trunk.", "encoders.text.trunk.")
    assert "direct.text.linear.weight" in taught and all(name.startswith(allowed) for name in taught)


def test_an_untrained_match_head_orders_by_the_cosine() -> None:
    x, y = (normalize(torch.randn(9, 6), dim=-1) for _ in range(2))
    assert torch.equal(MatchHead(6, 4)(x, y).argsort(), (x * y).sum(-1).argsort())


def test_token_vectors_begin_as_the_trunks_own(
    tiny: AlignConfig, tiny_task: Callable[..., AlignTask], tiny_batch: Callable[..., Batch]
) -> None:
    """With and without the backbone; padding is no token in either."""
    model = tiny_task(model=replace(tiny.model, direct=True, token_head=8)).model
    batch = tiny_batch()
    batch.present["audio"][1] = False
    alone = model(batch, moment=Moment(tokens=0.0))
    whole = model(batch)
    for m, mask in whole.masks.items():
        assert torch.equal(alone.masks[m], mask) and alone.tokens[m].shape == (*mask.shape, 8)
    torch.testing.assert_close(alone.tokens, whole.tokens)
    with torch.no_grad():
        model.project_tokens["text"].weight += 1
    moved = model(batch).tokens
    assert (moved["text"] - whole.tokens["text"]).abs().max() > 0.1
    torch.testing.assert_close(moved["image"], whole.tokens["image"])


@pytest.mark.parametrize("change", [{"direct": False}, {"generate": True}])
def test_projections_come_first_only_where_there_are_some_and_nothing_is_written(
    change: dict[str, bool],
    tiny: AlignConfig,
    tiny_task: Callable[..., AlignTask],
    tiny_batch: Callable[..., Batch],
) -> None:
    model = tiny_task(model=replace(tiny.model, **{"direct": True, **change})).model
    with pytest.raises(ValueError, match=r"model\.direct=true, generate=false"):
        model(tiny_batch(), moment=Moment(tokens=0.0))


def test_projections_of_codes_alone_do_not_come_first(
    tiny: AlignConfig, tiny_task: Callable[..., AlignTask], tiny_batch: Callable[..., Batch]
) -> None:
    codes_alone = replace(tiny.bottleneck, mode="vq")
    model = tiny_task(model=replace(tiny.model, direct=True), bottleneck=codes_alone).model
    with pytest.raises(ValueError, match=r"bottleneck\.mode=both, not vq"):
        model(tiny_batch(), moment=Moment(tokens=0.0))


def test_a_direct_reading_of_codes_alone_sees_nothing_but_them(
    tiny: AlignConfig,
    tiny_task: Callable[..., AlignTask],
    tiny_batch: Callable[..., Batch],
) -> None:
    codes_alone = replace(tiny.bottleneck, mode="vq")
    model = tiny_task(model=replace(tiny.model, direct=True), bottleneck=codes_alone).model.eval()
    batch = tiny_batch()
    found = model(batch).encoded
    for m, encoder in model.encoders.items():
        vectors = encoder.bottleneck.lookup(found[m].codes)
        expected = encoder.bottleneck.summarise(vectors, found[m].mask)
        torch.testing.assert_close(found[m].summary, expected)
        assert model.direct[m].linear.in_features == expected.shape[1]


def test_stored_codes_are_embedded_as_what_they_were_made_of(
    tiny: AlignConfig,
    tiny_task: Callable[..., AlignTask],
    tiny_batch: Callable[..., Batch],
    model: nn.Module,
) -> None:
    alone = tiny_task(bottleneck=replace(tiny.bottleneck, mode="vq")).model.eval()
    batch = tiny_batch()
    found = alone(batch)
    for m, encoded in found.encoded.items():
        torch.testing.assert_close(alone.embed_codes(m, encoded.codes), found.embeddings[m], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"bottleneck\.mode=vq"):
        model.embed_codes("image", found.encoded["image"].codes)
    alone.add_term_bias(torch.tensor([[5, 6]]))
    alone.embed_codes("image", found.encoded["image"].codes)
    with pytest.raises(ValueError, match="term bias"):
        alone.embed_codes("text", found.encoded["text"].codes)


def test_cached_features_stand_in_for_the_trunk(model: nn.Module, tiny_batch: Callable[..., Batch]) -> None:
    batch = tiny_batch()
    features = {m: model.encoders[m].features(batch.inputs[m], batch.masks.get(m)) for m in batch.modalities}
    cached = replace(
        batch,
        inputs={},
        features={m: f.tokens for m, f in features.items()},
        masks={m: f.mask for m, f in features.items()},
    )
    assert cached.modalities == ("image", "audio", "text")
    for encoder in model.encoders.values():
        encoder.trunk.forward = None  # running it would fail
    out = model(cached)
    for encoder in model.encoders.values():
        del encoder.trunk.forward
    torch.testing.assert_close(out.embeddings, model(batch).embeddings)


def test_a_model_of_two_modalities_has_no_part_for_the_third(
    tiny_task: Callable[..., AlignTask], tiny: AlignConfig
) -> None:
    model = tiny_task(model=replace(tiny.model, modalities=("image", "text"))).model
    parts = {name for name, _ in model.named_parameters() if "audio" in name}
    assert model.modalities == ("image", "text") and parts <= {"backbone.modality.audio"}
    with pytest.raises(ValueError, match="choose from image, audio, text"):
        ModelConfig(modalities=("image", "smell"))


def test_select_takes_rows_and_leaves_the_losses(model: nn.Module, tiny_batch: Callable[..., Batch]) -> None:
    encoded = model(tiny_batch()).encoded["text"]
    part = select(encoded, torch.tensor([2, 2, 0]))
    assert torch.equal(part.tokens[0], part.tokens[1]) and torch.equal(part.codes[2], encoded.codes[0])
    assert part.losses == {} and encoded.losses


def test_pooling_ignores_padding() -> None:
    torch.manual_seed(0)
    pool, x = AttentionPool(6), torch.randn(2, 3, 6)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    garbage = x.masked_fill(~mask[..., None], 77.0)
    torch.testing.assert_close(pool(garbage, mask), pool(x, mask))
    torch.testing.assert_close(pool(x, mask)[1], 2 * x[1, 0])  # one token: its mean and its attention


@pytest.mark.parametrize("cosine", [0.3, 0.5, 0.7, 0.9])
def test_an_untrained_match_head_is_confident_of_nothing(cosine: float) -> None:
    """Hard negatives are as close as pairs when matching comes in: calling them pairs would cost them their places."""
    x = torch.tensor([[1.0, 0.0]]).repeat(64, 1)
    y = torch.tensor([[cosine, (1 - cosine**2) ** 0.5]]).repeat(64, 1)
    loss = matching_loss(*MatchHead(2, 8)(x, y).view(2, 32))
    assert loss < 1.6
