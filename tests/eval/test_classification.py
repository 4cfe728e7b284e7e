"""Zero-shot classification: an image retrieves the name of its class."""

import numpy as np
import pytest

from eval.classification import prompts, zero_shot, zero_shot_figures
from eval.intervals import Bootstrap
from eval.protocols import Stated


def test_zero_shot_classification_reads_the_prompts():
    assert prompts(["dog", "cat"], ["a {}."]) == [["a dog."], ["a cat."]]
    classes = np.eye(3)[:, None, :].repeat(2, 1)
    found = zero_shot(np.eye(3)[[0, 1, 1, 2]], np.array([0, 1, 2, 2]), classes, ks=(1, 2))
    assert found.recall(1) == 75
    with pytest.raises(ValueError, match="labels"):
        zero_shot(np.eye(3), np.array([0, 1, 3]), classes)
    with pytest.raises(ValueError, match=r"a thing"):
        prompts(["dog"], ["a thing"])


def test_the_protocol_says_how_many_classes_and_prompts_and_top_5_needs_more_than_five_classes():
    def figures(classes):
        vectors = np.eye(classes)
        return zero_shot_figures(
            vectors,
            np.arange(classes),
            vectors[:, None].repeat(3, 1),
            Stated("birds", "classes", "zero-shot"),
            kind="audio clips",
            bootstrap=Bootstrap(10),
        )

    few, many = figures(4), figures(7)
    assert few.metrics == {"top-1 accuracy": 100} and many.metrics == {"top-1 accuracy": 100, "top-5 accuracy": 100}
    assert "audio clips among 4 classes, 3 prompts each" in str(few.protocol) and "zero-shot" in few.protocol.trained_on
