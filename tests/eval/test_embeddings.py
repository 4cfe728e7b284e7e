"""Embeddings from a file: what is evaluated, and what is refused by name."""

import numpy as np
import pytest

from eval.coco import GroundTruth, Matches
from eval.embeddings import Embeddings, evaluate_embeddings, evaluate_matching


def arrays(noise=1.0, images=40, seed=0):
    rng, shared = np.random.default_rng(seed), np.random.default_rng(99)
    centre = shared.standard_normal((images, 8))
    ids = np.arange(images) * 3
    return {
        "image": 4 * centre,
        "text": np.repeat(centre, 5, 0) + noise * rng.standard_normal((images * 5, 8)),
        "image_ids": ids,
        "caption_image_ids": np.repeat(ids, 5),
        "caption_ids": np.arange(images * 5),
    }


def test_length_of_vectors_does_not_matter():
    found = arrays()
    longer = found | {"image": found["image"] * np.random.default_rng(1).uniform(0.1, 9, (40, 1))}
    a, b = (evaluate_embeddings(Embeddings.of(x), samples=10)["all"].metrics for x in (found, longer))
    assert a == b


def test_sounds_are_judged_on_the_items_that_have_one():
    found = arrays()
    found |= {"audio": found["image"][:10], "audio_image_ids": found["image_ids"][:10]}
    figures = evaluate_embeddings(Embeddings.of(found), samples=10)
    assert figures["image_audio"].metrics["image_to_audio/R@1"] == 100 and figures["image_audio"].protocol.images == 10
    assert figures["audio_text"].protocol.captions == 50


def test_matching_takes_its_threshold_from_the_validation_file():
    test, validation, easy = (Embeddings.of(arrays(noise, seed=s)) for noise, s in ((1.0, 0), (1.0, 1), (0.1, 2)))
    found = evaluate_matching(
        test, validation, retriever=easy, retriever_name="easy", validation_split="dev", samples=20
    )
    random, hard = found["random/cosine"], found["hard/cosine"]
    assert random.metrics["accuracy"] > hard.metrics["accuracy"] > 50
    assert hard.metrics["threshold"] == random.metrics["threshold"]
    assert "non-matches (top 20 of easy)" in str(hard.protocol) and "threshold fixed on dev" in str(hard.protocol)


def test_further_scores_are_judged_on_the_same_pairs():
    test, validation = Embeddings.of(arrays(seed=0)), Embeddings.of(arrays(seed=1))

    def knows(e):
        return lambda images, captions: (e.image_ids[images] == e.caption_image_ids[captions]).astype(float)

    found = evaluate_matching(test, validation, joint={"oracle": (knows(test), knows(validation))}, samples=20)
    assert set(found) == {"random/cosine", "random/oracle"}
    assert found["random/oracle"].metrics["accuracy"] == 100 > found["random/cosine"].metrics["accuracy"]
    assert "by oracle" in found["random/oracle"].protocol.task


def test_known_matches_are_not_used_as_negatives():
    """Everybody calls every image but the last a match of every caption: the last is the only negative left."""
    found = arrays(images=6) | {"caption_image_ids": np.repeat(np.arange(6) * 3, 5)}
    items, everything = Embeddings.of(found), {i: list(range(30)) for i in range(0, 15, 3)}
    truth = GroundTruth(np.arange(30), found["caption_image_ids"], {"eccv": Matches(everything, {})})
    seen = []

    def watched(images, captions):
        seen.append(images)
        return items.cosine(images, captions)

    judged = evaluate_matching(items, items, ground_truth=truth, joint={"watched": (watched, items.cosine)}, samples=10)
    assert set(seen[1]) == {5} and judged["random/watched"].protocol.ground_truth == "original+eccv"


def test_a_retriever_of_other_items_is_refused():
    other = arrays(images=41)
    with pytest.raises(ValueError, match="same images"):
        evaluate_matching(Embeddings.of(arrays()), Embeddings.of(arrays()), retriever=Embeddings.of(other))


BROKEN = {
    "NaN or infinity": {"image": np.full((40, 8), np.nan)},
    "is zero": {"image": np.zeros((40, 8))},
    "40 integers": {"image_ids": np.arange(39)},
    "3 integers": {"text": np.ones((3, 8))},
    "float64": {"image_ids": np.arange(40.0) * 3},
    "not numbers": {"image_ids": np.array(["a"] * 40)},
    r"8 \(image\), 9 \(text\)": {"text": np.ones((200, 9))},
    "matrix of vectors": {"text": np.ones(200)},
    "differ in 1 images .the first is 120": {"caption_image_ids": np.append(np.repeat(np.arange(40) * 3, 5)[1:], 120)},
    "image_ids repeat": {"image_ids": np.zeros(40, int)},
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_arrays_are_refused(message):
    with pytest.raises(ValueError, match=message):
        Embeddings.of(arrays() | BROKEN[message])


def test_missing_arrays_are_named_beside_those_that_are_there():
    found = arrays()
    found["image_id"] = found.pop("image_ids")
    with pytest.raises(ValueError, match=r"lack image_ids; they hold .*image_id"):
        Embeddings.of(found)


def test_files_that_are_not_embeddings_are_refused_by_name_without_running_them(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_text("")
    np.savez(tmp_path / "pickled.npz", image=np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "one.npy", np.ones(3))
    np.savez(tmp_path / "whole.npz", **arrays())
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:2000])
    for name in ("text.npz", "empty.npz", "pickled.npz", "one.npy", "cut.npz"):
        with pytest.raises(ValueError, match=rf"{name} is not an .npz file of plain arrays"):
            Embeddings.load(tmp_path / name)


def test_a_run_s_folder_stands_for_its_embeddings(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"embeddings\.npz"):
        Embeddings.load(tmp_path)
    np.savez(tmp_path / "embeddings.npz", **arrays())
    assert len(Embeddings.load(tmp_path).text) == 200
