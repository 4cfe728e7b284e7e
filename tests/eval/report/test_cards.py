"""The report's cards: the best, the usual and the worst queries, no image twice, and what each retrieved."""

import re

import numpy as np
import pytest
from PIL import Image

from eval.report.cards import Examples, chosen, gallery_of, sides_of
from eval.report.media import Clip
from eval.retrieval import retrieval_both

IDS = np.arange(6)
CLIP = Clip(b"f", "audio/flac", np.eye(4))


def evaluated(count=2):
    """Six images and a caption each, all found first but image 5, whose caption is image 0's."""
    image = np.eye(6, dtype=np.float32)
    text = image[[0, 1, 2, 3, 4, 0]] + 0.01 * np.eye(6, dtype=np.float32)[[1, 2, 3, 4, 5, 5]]
    vectors = {"image": image, "text": text, "image_ids": IDS, "caption_image_ids": IDS}
    sides = sides_of(vectors, "image", "text")
    examples = Examples([f"caption {i}" for i in IDS], lambda i: Image.new("RGB", (8, 8), (40 * i, 0, 0)), count=count)
    return sides, retrieval_both(image, text, IDS, IDS), examples


def cards(shown):
    return shown.split("<article")[1:]


def test_images_show_their_captions_best_usual_and_worst():
    (image, text), (to_text, _), examples = evaluated()
    shown = cards(gallery_of(image, text, to_text, examples, set()))
    assert [re.search(r"card (\w+)", card)[1] for card in shown] == ["good", "good", "open", "open", "bad", "bad"]
    assert "rank 1.5 of 6" in shown[4] and 'alt="query: image 5"' in shown[4]
    assert all(card.count("<li") == 3 for card in shown) and shown[0].index("hit") < shown[0].index("miss")


def test_captions_show_their_images():
    (image, text), (_, to_image), examples = evaluated()
    worst = cards(gallery_of(text, image, to_image, examples, set()))[4]
    assert "<blockquote>caption 5</blockquote>" in worst and worst.count('alt="retrieved: image') == 4
    assert re.findall(r'li class="(\w+)"', worst)[:2] == ["miss", "hit"]


def test_no_image_is_asked_about_twice_not_even_by_its_five_captions():
    vectors = np.eye(4, dtype=np.float32)
    ids = np.repeat(np.arange(4), 5)
    arrays = {"image": vectors, "text": vectors[ids], "image_ids": np.arange(4), "caption_image_ids": ids}
    text, image = sides_of(arrays, "text", "image")
    result, _ = retrieval_both(text.vectors, image.vectors, text.ids, image.ids)
    taken = {3}
    queries = chosen(text, result, np.zeros(20), 2, taken)
    shown = [int(text.ids[query.position]) for query in queries]
    assert len(shown) == 3 and sorted(shown) == [0, 1, 2] and taken == {0, 1, 2, 3}
    assert not chosen(text, result, np.zeros(20), 2, taken)


def test_what_would_have_been_right_is_shown_where_it_was_not_found():
    image = np.eye(6, dtype=np.float32)
    arrays = {"image": image, "text": -image, "image_ids": IDS, "caption_image_ids": IDS}
    text, side = sides_of(arrays, "text", "image")
    to_image, _ = retrieval_both(text.vectors, side.vectors, IDS, IDS)
    examples = Examples(["c"] * 6, lambda i: Image.new("RGB", (8, 8)), lambda i: f"own {i}", count=1)
    assert "own image" in gallery_of(text, side, to_image, examples, set())
    to_text = retrieval_both(side.vectors, text.vectors, IDS, IDS)[0]
    assert "Right would have been: own" in gallery_of(side, text, to_text, examples, set())


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
def test_ranks_and_words_are_of_the_same_items_where_some_have_no_partner(a, b, shared):
    vectors = partly_absent()
    examples = Examples(
        [f"caption of {i}" for i in vectors["caption_image_ids"]],
        lambda i: Image.new("RGB", (8, 8)) if i in vectors["image_ids"] else None,
        lambda i: f"caption of {i}",
        lambda i: CLIP,
    )
    sides = sides_of(vectors, a, b)
    assert all(set(side.ids.tolist()) == shared for side in sides)
    results = retrieval_both(sides[0].vectors, sides[1].vectors, sides[0].ids, sides[1].ids, [1])
    for asking, asked, result in ((*sides, results[0]), (*sides[::-1], results[1])):
        shown = cards(gallery_of(asking, asked, result, examples, set()))
        assert len(shown) == len(shared) and all("rank 1 of" in card for card in shown)
        for card in shown:
            query, first = card.partition('<ol class="found')[::2]
            number = re.search(r"(?:image|caption of) (\d+)[<\"]", query)[1]
            assert first.split("<li")[1].count('class="right"') == 1 and "1.000" in first.split("</li>")[0]
            assert re.search(rf"(?:image|of|audio) {number}\b", first.split("</li>")[0])
            assert ("<audio" in query) == (asking.modality == "audio")


def test_modalities_without_a_common_image_are_no_pair():
    vectors = partly_absent()
    vectors["audio_image_ids"] = np.array([5, 6, 7])
    assert (
        sides_of(vectors, "image", "audio") is None and sides_of({"image": vectors["image"]}, "image", "text") is None
    )
