"""What a number means: protocol, chance and use, by cases that can be counted on fingers."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders import EncoderOutput
from eval.intervals import Bootstrap
from eval.protocols import Protocol
from eval.retrieval import RetrievalResult, retrieval_both
from mm.config import AlignConfig
from mm.data.media import pixels_of
from mm.data.module import AlignData
from mm.evaluation.embed import Embedded, SplitEmbeddings
from mm.evaluation.exhibits import examples_of
from mm.evaluation.result import chance, evaluation_figures, split_protocol, stated_of, utilization
from mm.evaluation.retrieval import Evaluation, with_partner
from mm.modalities import pairs_of


def part(ids: list[int]) -> Embedded:
    zeros = torch.zeros(len(ids), 1, 2)
    encoded = EncoderOutput(zeros, zeros[..., :1], torch.ones(len(ids), 1).bool(), zeros[:, 0])
    vectors = torch.nn.functional.normalize(torch.randn(len(ids), 4), dim=1)
    return Embedded(vectors, torch.zeros(len(ids), 1, 2), torch.tensor(ids), encoded)


def evaluated(**ids: list[int]) -> Evaluation:
    """Random vectors of these image ids by modality, with the retrieval of every pair."""
    parts = {modality: part(own) for modality, own in ids.items()}
    found = Evaluation(SplitEmbeddings(parts, torch.arange(len(ids.get("text", [])))))
    for a, b in pairs_of(parts):
        x, y = with_partner(parts[a], parts[b]), with_partner(parts[b], parts[a])
        forward, backward = retrieval_both(x.vectors, y.vectors, x.ids, y.ids)
        found.results |= {f"{a}_to_{b}": forward, f"{b}_to_{a}": backward}
    return found


@pytest.fixture
def evaluation() -> Evaluation:
    """Four images, two captions each; 2 of 4 codes used evenly; of 4 experts the first layer uses 1, the second all."""
    torch.manual_seed(0)
    image, text = part([1, 2, 3, 4]), part([1, 1, 2, 2, 3, 3, 4, 4])
    counts = {"image": np.array([[5, 5, 0, 0]]), "text": np.zeros((0, 0), dtype=np.int64)}
    load = np.zeros((2, 3, 4))
    load[0, :, 0], load[1] = 8, 2
    forward, backward = retrieval_both(image.vectors, text.vectors, image.ids, text.ids)
    embeddings = SplitEmbeddings({"image": image, "text": text}, torch.arange(8), counts, load)
    return Evaluation(embeddings, {"image_to_text": forward, "text_to_image": backward})


def test_chance_is_matches_over_gallery(evaluation: Evaluation) -> None:
    assert chance(evaluation) == {"chance/image_to_text/R@1": 25.0, "chance/text_to_image/R@1": 25.0}


def test_chance_of_partly_absent_modalities_is_of_the_galleries_that_are_searched() -> None:
    """Images 1 to 4, captions of 3, 4, 4 and 9: two images ask three captions, three captions two images."""
    found = chance(evaluated(image=[1, 2, 3, 4], text=[3, 4, 4, 9]))
    assert found == {"chance/image_to_text/R@1": 50.0, "chance/text_to_image/R@1": 50.0}


def test_the_protocol_counts_samples_what_they_have_and_the_galleries(
    on_scenes: Callable[..., AlignConfig], open_data: Callable[[AlignConfig], AlignData]
) -> None:
    """Of nine samples 0, 1, 2 have no image and 2, 3 no audio; all have captions."""
    dataset = open_data(on_scenes()).open("val")
    ids = dataset.image_ids
    text = np.repeat(ids, 2).tolist()
    evaluation = evaluated(image=ids[3:], audio=[*ids[:2], *ids[4:]], text=text)
    protocol = split_protocol(evaluation, stated_of(dataset, "val", "", evaluation.embeddings.arrays()))
    assert protocol.samples == 9 and protocol.present == {"image": 6, "audio": 7, "text": 9}
    assert (protocol.images, protocol.captions, protocol.captions_per_image) == (6, 12, "2")
    assert protocol.gallery == {
        "image_to_text": 12,
        "text_to_image": 6,
        "audio_to_text": 14,
        "text_to_audio": 7,
        "image_to_audio": 5,
        "audio_to_image": 5,
    }
    assert protocol.skipped == {"sample without image and audio": 1}
    without_text = evaluated(image=ids[3:], audio=ids[:5])
    protocol = split_protocol(without_text, stated_of(dataset, "val", "", without_text.embeddings.arrays()))
    assert (protocol.images, protocol.captions) == (0, 0) and "2 audio clips x 2 images" in str(protocol)
    assert protocol.skipped == {"sample without image": 3, "sample without audio": 4}


def test_what_re_ranking_gains_has_an_interval_of_the_same_queries() -> None:
    ids = np.arange(40)
    before = (ids % 2).astype(float)[:, None]
    after = before.copy()
    after[:8] = 1  # four queries more

    def found(hits: np.ndarray) -> RetrievalResult:
        return RetrievalResult((1,), np.ones(40), hits, hits, ids)

    images = evaluated(image=ids.tolist(), audio=ids.tolist())
    evaluation = replace(images, results={"image_to_audio": found(before)}, reranked={"image_to_audio": found(after)})
    figures = evaluation_figures(evaluation, Protocol("toy", "val", 40, 0, "0"), Bootstrap(200))
    assert figures.metrics["reranked/image_to_audio/gain@1"] == 10
    low, high = figures.intervals["reranked/image_to_audio/gain@1"]
    assert 0 < low < 10 < high
    apart = [figures.intervals[f"{prefix}image_to_audio/R@1"] for prefix in ("", "reranked/")]
    assert apart[0][1] > apart[1][0]  # intervals that are not paired overlap


def test_use_is_percent_used_and_perplexity_over_layers(evaluation: Evaluation) -> None:
    found = utilization(evaluation)
    assert found["codes/image/used"] == 50 and found["codes/image/perplexity"] == pytest.approx(2)
    assert "codes/text/used" not in found  # a continuous bottleneck has no codes
    assert found["experts/text/used"] == pytest.approx((25 + 100) / 2)
    assert found["experts/text/perplexity"] == pytest.approx((1 + 4) / 2)


def test_the_protocol_says_what_was_counted_and_trained_on(
    on_scenes: Callable[..., AlignConfig], open_data: Callable[[AlignConfig], AlignData]
) -> None:
    dataset = open_data(on_scenes()).open("val")
    dataset.skipped = {"truncated": 2}
    evaluation = evaluated(image=dataset.image_ids, text=np.repeat(dataset.image_ids, 5).tolist())
    stated = stated_of(dataset, "val", "trained on scenes/train", evaluation.embeddings.arrays())
    protocol = split_protocol(evaluation, stated, 7)
    assert (protocol.images, protocol.captions, protocol.captions_per_image) == (9, 45, "5")
    assert protocol.rerank_depth == 7 and protocol.name == dataset.name == "scenes/val"
    assert protocol.trained_on == "trained on scenes/train" and protocol.skipped == {"truncated": 2}


def test_examples_run_parallel_to_the_captions_of_the_split(
    on_scenes: Callable[..., AlignConfig], open_data: Callable[[AlignConfig], AlignData]
) -> None:
    dataset = open_data(on_scenes()).open("val")
    ids = dataset.image_ids
    examples = examples_of(dataset, evaluated(image=ids[1:], text=ids).embeddings.arrays())
    assert examples.thumbnail(ids[0]) is None
    assert list(examples.captions[5:10]) == list(dataset.captions[1])
    image = dataset[1].image
    assert image is not None and torch.equal(pixels_of(examples.thumbnail(dataset.image_ids[1])), image)
