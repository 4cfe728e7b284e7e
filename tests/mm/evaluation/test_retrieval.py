"""Every direction a split can be asked in, and re-ranking that only reorders its shortlist."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from alignment import ScheduleConfig
from encoders import EncoderOutput
from mm.artifacts.run import build_run
from mm.config import AlignConfig, EvalConfig
from mm.data.module import AlignData
from mm.evaluation.embed import Embedded
from mm.evaluation.retrieval import Evaluation, evaluate_split, with_partner


@pytest.fixture
def evaluate(
    on_scenes: Callable[..., AlignConfig], open_data: Callable[[AlignConfig], AlignData]
) -> Callable[..., Evaluation]:
    def run(config: EvalConfig, **changes: object) -> Evaluation:
        whole = on_scenes(**changes)
        data = open_data(whole)
        torch.manual_seed(0)
        run = build_run(whole, data.vocabulary)
        return evaluate_split(run, data, data.open("val"), "val", config)

    return run


def test_all_six_directions_with_and_without_the_joint_head(evaluate: Callable[..., Evaluation]) -> None:
    found = evaluate(EvalConfig(rerank=2))
    names = {f"{a}_to_{b}" for a in ("image", "audio", "text") for b in ("image", "audio", "text") if a != b}
    assert set(found.results) == names and set(found.reranked) == {"image_to_text", "text_to_image"}
    metrics = found.metrics()
    assert {"RSUM", "reranked/RSUM", "image_to_text/R@1", "reranked/text_to_image/R@10"} <= metrics.keys()
    both = [metrics[f"{d}/R@{k}"] for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    assert metrics["RSUM"] == pytest.approx(sum(both))


def test_without_reranking_there_is_none(evaluate: Callable[..., Evaluation]) -> None:
    found = evaluate(EvalConfig(rerank=0))
    assert not found.reranked and not any(k.startswith("reranked") for k in found.metrics())


def test_what_was_not_trained_to_re_rank_says_so_and_does_not(
    evaluate: Callable[..., Evaluation], caplog: pytest.LogCaptureFixture
) -> None:
    found = evaluate(EvalConfig(rerank=2), schedule=ScheduleConfig("contrastive_only"))
    assert not found.reranked and "schedule.kind=contrastive_only trains neither" in caplog.text


def test_two_modalities_have_two_directions(evaluate: Callable[..., Evaluation], tiny: AlignConfig) -> None:
    found = evaluate(EvalConfig(rerank=0), model=replace(tiny.model, modalities=("audio", "text")))
    assert set(found.results) == {"audio_to_text", "text_to_audio"} and "RSUM" not in found.metrics()


def test_a_shortlist_of_one_changes_nothing_and_one_deeper_than_the_gallery_is_cut(
    evaluate: Callable[..., Evaluation],
) -> None:
    shallow, deep = evaluate(EvalConfig(rerank=1)), evaluate(EvalConfig(rerank=99))
    plain = shallow.results["text_to_image"].ranks
    assert (shallow.reranked["text_to_image"].ranks == plain).all()  # one candidate cannot be reordered
    assert deep.reranked["text_to_image"].ranks.min() >= 1 and deep.reranked["text_to_image"].ranks.max() <= 9
    assert (deep.reranked["text_to_image"].ranks != plain).any()


def test_what_has_no_partner_is_not_asked_for() -> None:
    def part(ids: list[int]) -> Embedded:
        count = len(ids)
        mask = torch.ones(count, 2, dtype=torch.bool)
        encoded = EncoderOutput(torch.randn(count, 2, 4), torch.zeros(count, 2, 1), mask, torch.randn(count, 4))
        return Embedded(torch.randn(count, 3), torch.randn(count, 2, 3), torch.tensor(ids), encoded)

    image, audio = part([1, 2, 3]), part([3, 1])
    kept = with_partner(image, audio)
    assert kept.ids.tolist() == [1, 3] and torch.equal(kept.vectors, image.vectors[[0, 2]])
    assert torch.equal(kept.encoded.summary, image.encoded.summary[[0, 2]])
    assert torch.equal(kept.encoded.tokens, image.encoded.tokens[[0, 2]]) and with_partner(audio, image) is audio
