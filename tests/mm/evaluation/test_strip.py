"""README's picture of retrievals."""

import numpy as np
import pytest

from eval.embeddings import Embeddings
from mm.evaluation.strip import GAP, LINE, RIGHT, SIDE, retrieval_strip, scene_of


def embeddings(first: int) -> Embeddings:
    """Six images, two captions each; an image's own caption is nearest to it, the next image's second."""
    ids = np.arange(first, first + 6)
    image = np.eye(6)
    text = np.repeat(image + 0.5 * np.roll(image, 1, axis=1), 2, axis=0)
    return Embeddings.of({"image": image, "text": text, "image_ids": ids, "caption_image_ids": np.repeat(ids, 2)})


def test_a_row_is_a_caption_and_its_nearest_scenes_the_right_one_framed() -> None:
    strip = retrieval_strip(embeddings(1_000_000), queries=2, shown=3)
    assert strip.size == (3 * (SIDE + GAP) + GAP, 2 * (LINE + SIDE + GAP) + GAP)
    for row in range(2):
        y = GAP + row * (LINE + SIDE + GAP) + LINE + SIDE // 2
        framed = [strip.getpixel((GAP + place * (SIDE + GAP) - 3, y)) == RIGHT for place in range(3)]
        assert framed == [True, False, False]


def test_images_that_are_no_scenes_are_refused() -> None:
    assert scene_of(1_000_000) != scene_of(1_000_001)
    for image_id in (7_000_000, 1_500_000):
        with pytest.raises(ValueError, match=f"image {image_id} is no embedded scene"):
            scene_of(image_id)
