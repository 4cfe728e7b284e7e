"""The sum of named terms: which are there, how they weigh, and that only what belongs together is compared."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from alignment import (
    Aligned,
    DrawnPairs,
    LossConfig,
    LossTerms,
    LossWeights,
    ProgressiveAlignment,
    ScheduleConfig,
    loss_weights,
)
from alignment.progressive import paired_rows
from alignment.schedule import RAMP

CONFIG = LossConfig(filip_rows=4, itm_rows=4)
STAGES = {("image", "text"): 1, ("audio", "text"): 2, ("image", "audio"): 3}
PAIRS = tuple(STAGES)
Match = Callable[[list[DrawnPairs]], list[Tensor]]


def side(seed: int, rows: int = 6, present: Tensor | None = None, samples: int = 6) -> Aligned:
    random = torch.Generator().manual_seed(seed)
    embedding = torch.randn(rows, 8, generator=random)
    tokens = torch.randn(rows, 3, 4, generator=random)
    mask = torch.arange(3) < 1 + torch.arange(rows)[:, None] % 3
    there = torch.ones(rows, dtype=torch.bool) if present is None else present
    index = torch.arange(rows) % samples
    return Aligned(normalize(embedding, dim=-1).requires_grad_(), normalize(tokens, dim=-1), mask, there, index)


def no_match(drawn: list[DrawnPairs]) -> list[Tensor]:
    return [torch.zeros(len(d.rows_a)) for d in drawn]


def build(*modalities: str, config: LossConfig = CONFIG) -> ProgressiveAlignment:
    torch.manual_seed(0)
    return ProgressiveAlignment(config, 4, [pair for pair in PAIRS if set(pair) <= set(modalities)])


def run(
    loss: ProgressiveAlignment,
    sides: dict[str, Aligned],
    weights: LossWeights,
    match: Match = no_match,
    ids: Tensor | None = None,
) -> LossTerms:
    """The loss as a training step computes it."""
    torch.manual_seed(1)
    if ids is None:
        ids = torch.arange(len(next(iter(sides.values())).present))
    rows = loss.rows(sides)
    by_term = loss.term_weights(weights)
    terms = loss(sides, rows, ids, by_term)
    drawn = loss.draw(sides, rows, ids, by_term)
    loss.add_matching(terms, drawn, match(drawn), by_term)
    return terms


JOINT = loss_weights(ScheduleConfig(kind="joint"), 0.0, STAGES)
SIDES = {m: side(i) for i, m in enumerate(("image", "audio", "text"))}


def test_every_pair_has_its_four_terms_once_everything_has_begun() -> None:
    terms = run(build("image", "audio", "text"), SIDES, JOINT).terms
    assert set(terms) == {f"{kind}/{a}_{b}" for a, b in PAIRS for kind in ("contrastive", "filip", "code_match", "itm")}


def test_the_total_is_the_weighted_sum_of_what_is_named() -> None:
    at_once = ScheduleConfig("progressive", stage2=0, stage3=0)
    loss = run(build("image", "audio", "text"), SIDES, loss_weights(at_once, 0.3 * RAMP, STAGES))
    w = 3 * 0.3**2 - 2 * 0.3**3
    factors = {"contrastive": 1.0, "filip": CONFIG.filip, "code_match": CONFIG.code_match, "itm": CONFIG.itm}
    begun = {name: 1.0 if name == "contrastive/image_text" else w for name in loss.terms}
    expected = sum(value * factors[name.split("/")[0]] * begun[name] for name, value in loss.terms.items())
    torch.testing.assert_close(loss.total, expected)


def test_a_term_of_weight_zero_is_not_computed() -> None:
    seen: list[DrawnPairs] = []

    def match(drawn: list[DrawnPairs]) -> list[Tensor]:
        seen.extend(drawn)
        return no_match(drawn)

    weights = loss_weights(ScheduleConfig("progressive"), 0.0, STAGES)
    loss = run(build("image", "audio", "text"), SIDES, weights, match)
    assert set(loss.terms) == {"contrastive/image_text"} and not seen


def test_a_model_without_a_modality_has_no_terms_for_it() -> None:
    two = build("image", "text")
    assert set(run(two, SIDES, JOINT).terms) == {
        f"{kind}/image_text" for kind in ("contrastive", "filip", "code_match", "itm")
    }
    assert not any("audio" in name for name, _ in two.named_parameters())


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_samples_without_the_modality_change_nothing(kind: str) -> None:
    """Audio of the last two rows is absent: they get no gradient, and the loss is that of the first four."""
    present = torch.tensor([True] * 4 + [False] * 2)
    audio, text = side(1, present=present), side(2)
    loss = build("audio", "text", config=replace(CONFIG, contrastive=kind))  # type: ignore[arg-type]
    whole = run(loss, {"audio": audio, "text": text}, JOINT)
    assert whole.total.requires_grad
    whole.total.backward()
    assert audio.embedding.grad is not None and not audio.embedding.grad[4:].any() and audio.embedding.grad[:4].any()

    def cut(x: Aligned) -> Aligned:
        return Aligned(x.embedding[:4], x.tokens[:4], x.mask[:4], x.present[:4], x.sample_index[:4])

    torch.testing.assert_close(run(loss, {"audio": cut(audio), "text": cut(text)}, JOINT).terms, whole.terms)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("pairs", [0, 1])
def test_one_pair_alone_costs_nothing_and_moves_nothing(pairs: int, kind: str) -> None:
    present = torch.arange(6) < pairs
    loss = build("audio", "text", config=replace(CONFIG, contrastive=kind))  # type: ignore[arg-type]
    found = run(loss, {"audio": side(1, present=present), "text": side(2)}, JOINT)
    assert len(found.terms) == 4 and not any(found.terms.values())
    found.total.backward()
    assert not any(p.grad.any() for p in loss.parameters() if p.grad is not None)


def test_the_joint_head_sees_positives_first_and_then_wrong_pairs() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def match(drawn: list[DrawnPairs]) -> list[Tensor]:
        seen.extend((d.rows_a, d.rows_b) for d in drawn)
        return no_match(drawn)

    run(build("image", "audio", "text"), SIDES, JOINT, match)
    few = CONFIG.itm_rows
    assert len(seen) == 3
    for left, right in seen:
        assert len(left) == len(right) == 3 * few
        assert torch.equal(left[:few], right[:few]) and not (left[few:] == right[few:]).any()


def test_each_pair_of_modalities_has_its_own_logits() -> None:
    """All go through the joint head in one call; here it is right about the first pair of modalities and wrong about
    the others."""

    def match(drawn: list[DrawnPairs]) -> list[Tensor]:
        logits = []
        for turn, d in enumerate(drawn):
            sign = (torch.arange(len(d.rows_a)) < d.positives).float().mul(2).sub(1)
            logits.append((20.0 if turn == 0 else -20.0) * sign)
        return logits

    terms = run(build("image", "audio", "text"), SIDES, JOINT, match).terms
    right, *wrong = (float(terms[f"itm/{a}_{b}"]) for a, b in PAIRS)
    assert right < 1e-6 and all(abs(value - 20) < 1e-3 for value in wrong)


def test_several_captions_of_an_image_are_pairs_of_their_own_and_never_its_negatives() -> None:
    """As if the image had been given once for each of its captions."""
    seen: list[tuple[Tensor, Tensor]] = []

    def match(drawn: list[DrawnPairs]) -> list[Tensor]:
        seen.extend((d.rows_a, d.rows_b) for d in drawn)
        return no_match(drawn)

    loss = build("image", "text")
    image = side(0)
    text = side(2, rows=12)
    once = run(loss, {"image": image, "text": text}, JOINT, match).terms
    parts = (image.embedding, image.tokens, image.mask, image.present)
    twice = Aligned(*(torch.cat([part, part]) for part in parts), torch.arange(12))
    apart = side(2, rows=12, samples=12)
    both = run(loss, {"image": twice, "text": apart}, JOINT, match, torch.arange(6).repeat(2))
    torch.testing.assert_close(once, both.terms)
    left, right = seen[0]
    few = CONFIG.itm_rows
    assert left[:few].tolist() == right[:few].tolist() == [0, 1, 2, 3]
    assert not (left[few:] % 6 == right[few:] % 6).any()


def test_hard_negatives_are_rows_of_the_batch_where_some_are_absent() -> None:
    """Images 0 and 1 are absent; of those that are there each has one rival, whose caption and image are its own."""
    towards = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0])[:, None] * torch.eye(8)[0]
    image = side(0, present=torch.tensor([False, False, True, True, True, True]))
    text = side(1)
    image.embedding, text.embedding = towards, towards.clone()
    seen: list[DrawnPairs] = []

    def match(drawn: list[DrawnPairs]) -> list[Tensor]:
        seen.extend(drawn)
        return no_match(drawn)

    run(build("image", "text"), {"image": image, "text": text}, JOINT, match)
    pairs = list(zip(seen[0].rows_a.tolist(), seen[0].rows_b.tolist(), strict=True))
    count = seen[0].positives
    assert seen[0].real.all()
    assert sorted(pairs[:count]) == [(2, 2), (3, 3), (4, 4), (5, 5)]
    assert sorted(pairs[count:]) == sorted(2 * [(2, 3), (3, 2), (4, 5), (5, 4)])


def test_matching_counts_no_more_samples_than_there_are() -> None:
    """Three pairs where four are asked for: one of the positives and two of the negatives do not count."""
    seen: list[DrawnPairs] = []

    def match(drawn: list[DrawnPairs]) -> list[Tensor]:
        seen.extend(drawn)
        return [torch.where(d.real, 0.0, 100.0) for d in drawn]

    image = side(0, present=torch.tensor([False, True, True, False, True, False]))
    found = run(build("image", "text"), {"image": image, "text": side(1)}, JOINT, match)
    assert seen[0].real.tolist() == [True, True, True, False] * 3
    assert seen[0].rows_a[:3].tolist() == [1, 2, 4]
    assert found.terms["itm/image_text"].item() == pytest.approx(math.log(2))


def test_rows_pair_up_by_sample_and_absent_ones_come_last() -> None:
    image = side(0, rows=3, present=torch.tensor([True, False, True]), samples=3)
    text = side(1, rows=6, present=torch.tensor([True, True, False, True, True, True]), samples=3)
    rows = paired_rows(image, text)
    assert (rows.a[:3].tolist(), rows.b[:3].tolist()) == ([0, 0, 2], [0, 3, 5])
    assert rows.real.tolist() == [True] * 3 + [False] * 3 and rows.count == 3
    assert rows.order.tolist() == list(range(6)) and rows.first(rows.b[:2], 2, None).tolist() == [0, 3]
    turned = paired_rows(text, image)
    assert (turned.a[:3].tolist(), turned.b[:3].tolist()) == ([0, 3, 5], [0, 0, 2])
    assert sorted(turned.a.tolist()) == list(range(6))


def test_rows_pair_up_by_their_index_in_whatever_order_they_come() -> None:
    """All samples once before any twice: the second text of sample 1 comes last."""
    image = side(0, rows=3, samples=3)
    image.sample_index = torch.tensor([2, 0, 1])
    text = side(1, rows=4, samples=3)
    text.sample_index = torch.tensor([1, 1, 2, 0])
    rows = paired_rows(image, text)
    assert (rows.a.tolist(), rows.b.tolist()) == ([2, 0, 1, 2], [0, 2, 3, 1])


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_each_pair_has_its_own_temperature(kind: str) -> None:
    loss = build("image", "audio", "text", config=LossConfig(contrastive=kind))  # type: ignore[arg-type]
    names = [name for name, _ in loss.named_parameters() if name.startswith("contrastive") and "log_scale" in name]
    assert len(names) == 3


def test_every_learned_scale_is_clamped() -> None:
    loss = build("image", "audio", "text", config=LossConfig())
    learned = [parameter for name, parameter in loss.named_parameters() if name.endswith("log_scale")]
    with torch.no_grad():
        for parameter in learned:
            parameter.fill_(9)
    loss.clamp_scales()
    assert len(learned) == 6 and all(parameter.item() == pytest.approx(4.6052) for parameter in learned)


def test_a_highest_temperature_holds_for_the_contrastive_terms_alone() -> None:
    loss = build("image", "text", config=LossConfig(temperature=0.1))
    loss.clamp_scales(highest=0.05)
    assert [term.scale.item() for term in loss.contrastive.values()] == pytest.approx([20])
    assert [term.scale.item() for term in loss.filip.values()] == pytest.approx([10])
    loss.clamp_scales(highest=0.2)  # one that is lower stays
    assert [term.scale.item() for term in loss.contrastive.values()] == pytest.approx([20])
