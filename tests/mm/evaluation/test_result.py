"""What a number means: protocol, chance and use, by cases that can be counted on fingers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from encoders import EncoderOutput
from eval.retrieval import retrieval_both
from mm.config import AlignConfig
from mm.data.module import AlignData
from mm.evaluation.embed import Embedded, SplitEmbeddings
from mm.evaluation.result import chance, examples_of, split_protocol, utilization
from mm.evaluation.retrieval import Evaluation


def part(ids: list[int]) -> Embedded:
    zeros = torch.zeros(len(ids), 1, 2)
    encoded = EncoderOutput(zeros, zeros[..., :1], torch.ones(len(ids), 1).bool(), zeros[:, 0])
    vectors = torch.nn.functional.normalize(torch.randn(len(ids), 4), dim=1)
    return Embedded(vectors, torch.zeros(len(ids), 1, 2), torch.tensor(ids), encoded)


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
    protocol = split_protocol(dataset, "val", "trained on scenes/train", 7)
    assert (protocol.images, protocol.captions, protocol.captions_per_image) == (9, 45, "5")
    assert protocol.rerank_depth == 7 and protocol.name == dataset.name == "scenes/val"
    assert protocol.trained_on == "trained on scenes/train" and protocol.skipped == {"truncated": 2}


def test_examples_run_parallel_to_the_captions_of_the_split(
    on_scenes: Callable[..., AlignConfig], open_data: Callable[[AlignConfig], AlignData]
) -> None:
    dataset = open_data(on_scenes()).open("val")
    examples = examples_of(dataset)
    assert list(examples.captions[5:10]) == list(dataset.captions[1])
    image = dataset[1].image
    assert image is not None and examples.thumbnail(dataset.image_ids[1]).tobytes() == image.tobytes()
