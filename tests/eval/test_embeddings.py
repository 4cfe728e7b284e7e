"""Embeddings from a file: what is read, and what is refused by name."""

import numpy as np
import pytest

from eval.embeddings import Embeddings, ScoredItems


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


BROKEN = {
    "NaN or infinity": {"image": np.full((40, 8), np.nan)},
    "is zero": {"image": np.zeros((40, 8))},
    "40 integers": {"image_ids": np.arange(39)},
    "3 integers": {"text": np.ones((3, 8))},
    "float64": {"image_ids": np.arange(40.0) * 3},
    "not numbers": {"image_ids": np.array(["a"] * 40)},
    r"8 \(image\), 9 \(text\)": {"text": np.ones((200, 9))},
    "matrix of vectors": {"text": np.ones(200)},
    "no id in common": {"caption_image_ids": np.repeat(np.arange(40) * 3 + 1, 5)},
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


def test_vectors_are_of_length_one_and_scored_by_their_cosine():
    found = Embeddings.of(arrays() | {"audio": np.ones((2, 8)), "audio_image_ids": np.array([0, 3])})
    for vectors in (found.image, found.text, found.audio):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    expected = (found.image[[2, 0]] * found.text[[7, 9]]).sum(1)
    assert (found.cosine(np.array([2, 0]), np.array([7, 9])) == expected).all()


@pytest.mark.parametrize(
    "scaled",
    [
        lambda x: x * np.float32(1e20),
        lambda x: x * np.float32(1e-25),
        lambda x: x * np.float32(1e-40),
        lambda x: x.astype(np.float64) * 1e200,
        lambda x: x.astype(np.float64) * 1e-200,
        lambda x: x.astype(np.float64) * 10.0 ** np.linspace(-290, 290, len(x))[:, None],
        lambda x: x.astype(np.longdouble) * np.longdouble(10) ** 2000,
        lambda x: x.astype(np.float64) / np.abs(x).max() * 1.7e308,
    ],
)
def test_vectors_of_any_finite_size_have_the_same_direction(scaled):
    whole = arrays()
    expected = Embeddings.of(whole)
    changed = {name: scaled(np.asarray(whole[name], np.float32)) for name in ("image", "text")}
    found = Embeddings.of(whole | changed)
    allowed = 1e-4 if np.abs(changed["image"]).max() < 1e-38 and changed["image"].dtype == np.float32 else 1e-6
    np.testing.assert_allclose(found.image, expected.image, atol=allowed)
    np.testing.assert_allclose(found.text, expected.text, atol=allowed)


def test_whole_numbers_are_vectors_too():
    least = np.iinfo(np.int64).min
    found = Embeddings.of(arrays() | {"image": np.full((40, 8), least), "text": np.ones((200, 8), np.int8)})
    assert (found.image < 0).all() and found.cosine(np.array([0]), np.array([0])) == pytest.approx(-1)


def test_the_cosine_is_a_scorer_beside_the_joint_ones():
    found = Embeddings.of(arrays())
    scorers = ScoredItems(found, "val", {"match head": lambda images, captions: images + captions}).scorers()
    assert list(scorers) == ["cosine", "match head"]
    assert scorers["match head"](np.array([1]), np.array([2])) == 3
    assert scorers["cosine"](np.array([0]), np.array([0])) == found.cosine(np.array([0]), np.array([0]))


def test_audio_without_its_images_is_refused():
    with pytest.raises(ValueError, match="no audio_image_ids"):
        Embeddings.of(arrays() | {"audio": np.ones((2, 8))})


def test_items_without_a_partner_are_counted_and_scorers_keep_their_positions():
    """Captions of image 0 are gone, and image 39 is: positions are then others, what is scored is the same."""
    whole = arrays()
    found = Embeddings.of(
        whole
        | {"image": whole["image"][:39], "image_ids": whole["image_ids"][:39]}
        | {name: whole[name][5:] for name in ("text", "caption_image_ids", "caption_ids")}
    )
    asked = []

    def match_head(images, captions):
        asked.append((images.tolist(), captions.tolist()))
        return found.image_ids[images] + captions

    items = ScoredItems(found, "val", {"match head": match_head}).paired()
    kept = items.embeddings
    assert found.alone() == {"image without captions": 1, "caption without image": 5} and kept.alone() == {}
    assert kept.image_ids.tolist() == found.image_ids[1:].tolist() and len(kept.text) == len(kept.caption_ids) == 190
    assert items.scorers()["match head"](np.array([0, 37]), np.array([0, 189])).tolist() == [3, 114 + 189]
    assert asked == [([1, 38], [0, 189])]
    together = (np.array([4]), np.array([7]))
    assert items.scorers()["cosine"](*together) == found.cosine(np.array([5]), np.array([7]))
