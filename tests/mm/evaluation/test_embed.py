"""A split through a model: one row per image, audio and caption, and a shortlist scored pair by pair."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from alignment import ProgressiveAlignment, ScheduleConfig
from alignment.fine_grained import late_interaction, paired_late_interaction
from mm.artifacts.run import Run, build_run
from mm.config import AlignConfig
from mm.data.module import AlignData
from mm.evaluation.embed import SplitEmbeddings, count_codes, embed_split, joint_scores
from mm.model.encoding import select
from mm.model.multimodal import MatchInput

Built = tuple[Run, AlignData, SplitEmbeddings]


@pytest.fixture
def embedded(
    on_scenes: Callable[..., AlignConfig],
    open_data: Callable[[AlignConfig], AlignData],
    monkeypatch: pytest.MonkeyPatch,
) -> Built:
    # fp32, so that a reference can be compared with
    monkeypatch.setattr("kernels.dispatch.has_bf16", lambda device: False)
    config = on_scenes(eval={"batch_size": 4})
    data = open_data(config)
    torch.manual_seed(0)
    run = build_run(config, data.vocabulary)
    return run, data, embed_split(run, data, data.eval_view(data.open("val")), "val")


def test_every_image_sound_and_caption_has_a_row(embedded: Built) -> None:
    _, data, found = embedded
    dataset = data.open("val")
    arrays = found.arrays()
    assert arrays["image"].shape == arrays["audio"].shape == (9, 16) and arrays["text"].shape == (45, 16)
    assert arrays["image_ids"].tolist() == arrays["audio_image_ids"].tolist() == dataset.image_ids
    assert arrays["caption_image_ids"].tolist() == [i for i in dataset.image_ids for _ in range(5)]
    assert arrays["caption_ids"].tolist() == [i for ids in dataset.caption_ids for i in ids]


def test_the_batch_size_changes_nothing(embedded: Built) -> None:
    run, data, found = embedded
    larger = replace(run, config=replace(run.config, eval=replace(run.config.eval, batch_size=45)))
    again = embed_split(larger, data, data.eval_view(data.open("val")), "val")
    for m, part in found.parts.items():
        torch.testing.assert_close(again.parts[m].vectors, part.vectors)
    assert (again.load == found.load).all()


def test_codes_are_counted_once_per_real_token(embedded: Built) -> None:
    run, _, found = embedded
    for m, part in found.parts.items():
        counts = count_codes(part.encoded, run.model, m)
        assert counts.shape == (1, 16) and counts.sum() == part.encoded.mask.sum()
        assert (found.load[:, ("image", "audio", "text").index(m)].sum(1) == 2 * counts.sum()).all()  # type: ignore[index]


@torch.inference_mode()
def test_joint_scores_are_match_plus_weighed_first_stage(embedded: Built) -> None:
    """Sorted by length and cut into batches, each pair gets the score it gets alone."""
    run, _, found = embedded
    image, text = found.parts["image"], found.parts["text"]
    rows, columns = torch.tensor([0, 8, 3, 3, 5]), torch.tensor([44, 0, 17, 2, 30])
    weights = (0.5, 0.25)
    scores = joint_scores(run, ("image", "text"), image, text, (rows, columns), weights, batch_size=2)
    late = late_interaction(image.tokens, image.encoded.mask, text.tokens, text.encoded.mask)
    for k, (i, j) in enumerate(zip(rows, columns, strict=True)):
        left, right = select(image.encoded, i[None]), select(text.encoded, j[None])
        left.tokens, right.tokens = left.tokens.float(), right.tokens.float()
        (match,) = run.model.match([MatchInput("image", "text", left, right)]).logits
        cosine = image.vectors[i] @ text.vectors[j]
        contrastive, fine = run.loss.contrastive["image_text"].scale, run.loss.filip["image_text"].scale
        expected = match + 0.5 * contrastive * cosine + 0.25 * fine * late[i, j]
        torch.testing.assert_close(scores[k : k + 1], expected, rtol=1e-3, atol=2e-2)  # tokens are kept in bf16


@torch.inference_mode()
def test_a_term_that_was_not_trained_scores_nothing(embedded: Built) -> None:
    run, _, found = embedded
    image, text = found.parts["image"], found.parts["text"]
    rows = (torch.arange(5), torch.arange(5, 10))
    loss = replace(run.config.loss, itm=0)
    run = replace(run, config=replace(run.config, loss=loss), loss=ProgressiveAlignment(loss, 8, run.loss.pairs))
    left, right = image.rows(rows[0]), text.rows(rows[1])
    late = paired_late_interaction(left.tokens, left.encoded.mask, right.tokens, right.encoded.mask)
    scores = joint_scores(run, ("image", "text"), image, text, rows, (0.0, 1.0))
    torch.testing.assert_close(scores, run.loss.filip["image_text"].scale * late, rtol=1e-3, atol=2e-2)
    run.config = replace(run.config, schedule=ScheduleConfig("contrastive_only"))
    with pytest.raises(ValueError, match=r"schedule\.kind=contrastive_only trains neither"):
        joint_scores(run, ("image", "text"), image, text, rows, (1.0, 1.0))


@pytest.mark.parametrize(("precision", "reduced"), [("fp32", False), ("auto", True)])
def test_a_run_of_fp32_is_embedded_and_matched_in_fp32(
    embedded: Built, monkeypatch: pytest.MonkeyPatch, precision: str, reduced: bool
) -> None:
    run, data, _ = embedded
    monkeypatch.setattr("kernels.dispatch.has_bf16", lambda device: True)
    seen = []
    run.model.backbone.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    run.config = replace(run.config, train=replace(run.config.train, precision=precision))
    parts = embed_split(run, data, data.eval_view(data.open("val")), "val").parts
    embedding_calls = len(seen)
    rows = (torch.arange(3), torch.arange(3))
    joint_scores(run, ("image", "text"), parts["image"], parts["text"], rows, (1.0, 1.0))
    assert embedding_calls and len(seen) > embedding_calls and set(seen) == {reduced}
    kept = torch.bfloat16 if reduced else torch.float32
    assert {parts["image"].tokens.dtype, parts["image"].encoded.tokens.dtype} == {kept}
