"""The report's cards: the best and the worst queries, and what each retrieved."""

import numpy as np
from PIL import Image

from eval.report_cards import Examples, image_cards, text_cards
from eval.retrieval import retrieval_both

IDS = np.arange(6)


def evaluated():
    """Six images and a caption each, all found first but image 5, whose caption is image 0's."""
    image = np.eye(6, dtype=np.float32)
    text = image[[0, 1, 2, 3, 4, 0]] + 0.01 * np.eye(6, dtype=np.float32)[[1, 2, 3, 4, 5, 5]]
    vectors = {"image": image, "text": text, "image_ids": IDS, "caption_image_ids": IDS}
    examples = Examples([f"caption {i}" for i in IDS], lambda i: Image.new("RGB", (8, 8), (40 * i, 0, 0)), count=2)
    return vectors, retrieval_both(image, text, IDS, IDS), examples


def test_images_show_their_captions_best_and_worst():
    vectors, (to_text, _), examples = evaluated()
    cards = image_cards(vectors, to_text, examples)["cards"]
    assert [card["good"] for card in cards] == [True, True, False, False]
    worst = cards[2]
    assert worst["query"] == "image 5" and worst["rank"] == "1.5" and len(worst["texts"]) == 5
    assert [text["right"] for text in cards[0]["texts"]].count(True) == 1 and cards[0]["texts"][0]["right"]


def test_captions_show_their_images_best_and_worst():
    vectors, (_, to_image), examples = evaluated()
    cards = text_cards(vectors, to_image, examples)["cards"]
    worst = cards[2]
    assert worst["query"] == "caption 5" and not worst["good"] and len(worst["images"]) == 4
    assert [image["right"] for image in worst["images"]][:2] == [False, True]
    assert all(image["source"].startswith("data:image/jpeg") for image in worst["images"])
