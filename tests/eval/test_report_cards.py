"""The report's cards: the best and the worst queries, and what each retrieved."""

import numpy as np
import pytest
from PIL import Image

from eval.report_cards import Examples, cards_of, sides_of
from eval.retrieval import retrieval_both

IDS = np.arange(6)


def evaluated():
    """Six images and a caption each, all found first but image 5, whose caption is image 0's."""
    image = np.eye(6, dtype=np.float32)
    text = image[[0, 1, 2, 3, 4, 0]] + 0.01 * np.eye(6, dtype=np.float32)[[1, 2, 3, 4, 5, 5]]
    vectors = {"image": image, "text": text, "image_ids": IDS, "caption_image_ids": IDS}
    sides = sides_of(vectors, "image", "text")
    examples = Examples([f"caption {i}" for i in IDS], lambda i: Image.new("RGB", (8, 8), (40 * i, 0, 0)), count=2)
    return sides, retrieval_both(image, text, IDS, IDS), examples


def test_images_show_their_captions_best_and_worst():
    (image, text), (to_text, _), examples = evaluated()
    cards = cards_of(image, text, to_text, examples)["cards"]
    assert [card["good"] for card in cards] == [True, True, False, False]
    worst = cards[2]
    assert worst["query"] == "image 5" and worst["rank"] == "1.5" and len(worst["texts"]) == 5
    assert [text["right"] for text in cards[0]["texts"]].count(True) == 1 and cards[0]["texts"][0]["right"]


def test_captions_show_their_images_best_and_worst():
    (image, text), (_, to_image), examples = evaluated()
    cards = cards_of(text, image, to_image, examples)["cards"]
    worst = cards[2]
    assert worst["query"] == "caption 5" and not worst["good"] and len(worst["images"]) == 4
    assert [image["right"] for image in worst["images"]][:2] == [False, True]
    assert all(image["source"].startswith("data:image/jpeg") for image in worst["images"])


def partly_absent():
    """Images 0, 1, 2 and 4, audio 1, 2, 3, and captions 9, 0, 1, 2, 3, where equal ids have equal vectors."""
    axes = np.eye(10, dtype=np.float32)
    ids = {"image": [0, 1, 2, 4], "audio": [1, 2, 3], "text": [9, 0, 1, 2, 3]}
    keys = {"image": "image_ids", "audio": "audio_image_ids", "text": "caption_image_ids"}
    vectors = {}
    for modality, own in ids.items():
        vectors[modality] = axes[own]
        vectors[keys[modality]] = np.array(own)
    return vectors


@pytest.mark.parametrize(
    "a, b, shared", [("image", "text", {0, 1, 2}), ("audio", "text", {1, 2, 3}), ("image", "audio", {1, 2})]
)
def test_ranks_margins_and_words_are_of_the_same_items_where_some_have_no_partner(a, b, shared):
    vectors = partly_absent()
    examples = Examples(
        [f"caption of {i}" for i in vectors["caption_image_ids"]],
        lambda i: Image.new("RGB", (8, 8)) if i in vectors["image_ids"] else None,
        lambda i: f"caption of {i}",
    )
    sides = sides_of(vectors, a, b)
    assert all(set(side.ids.tolist()) == shared for side in sides)
    results = retrieval_both(sides[0].vectors, sides[1].vectors, sides[0].ids, sides[1].ids, [1])
    for asking, asked, result in ((*sides, results[0]), (*sides[::-1], results[1])):
        cards = cards_of(asking, asked, result, examples)["cards"]
        assert len(cards) == len(shared) and all(card["rank"] == "1" for card in cards)
        for card in cards:
            first = card.get("texts", card.get("images"))[0]
            assert first["right"] and first["score"] == "1.000"
            number = card["query"].split()[-1]
            assert "text" not in first or first["text"].split()[-1] == number
            assert bool(card["image"]) == (int(number) in vectors["image_ids"])


def test_modalities_without_a_common_image_are_no_pair():
    vectors = partly_absent()
    vectors["audio_image_ids"] = np.array([5, 6, 7])
    assert (
        sides_of(vectors, "image", "audio") is None and sides_of({"image": vectors["image"]}, "image", "text") is None
    )
