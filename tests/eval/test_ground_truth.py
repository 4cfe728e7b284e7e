"""The Karpathy test split's ground truth: which items it fits, and what it calls a match."""

import json

import numpy as np
import pytest

from eval.ground_truth import GroundTruth, Matches


@pytest.fixture
def truth():
    """Image 7 has the captions 1 and 2, image 9 the captions 3 and 4."""
    return GroundTruth(
        np.array([1, 2, 3, 4]),
        np.array([7, 7, 9, 9]),
        {"eccv": Matches({7: [3]}, {4: [7]}), "cxc": Matches({9: [1]}, {})},
    )


@pytest.mark.parametrize("place", ["", "eccv_caption"])
def test_a_folder_is_read_with_plausible_matches_only_where_they_are(tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    np.save(folder / "coco_test_ids.npy", np.array([3, 1, 2]))
    stems = ("original", "cxc", "eccv")
    for stem in stems:
        (folder / f"{stem}_caption_to_image.json").write_text(json.dumps({"1": [7], "2": [7], "3": [9]}))
        (folder / f"{stem}_image_to_caption.json").write_text(json.dumps({"7": [1, 2], "9": [3]}))
    found = GroundTruth.load(tmp_path)
    assert found.captions.tolist() == [3, 1, 2] and found.images.tolist() == [9, 7, 7]
    assert found.extra.keys() == {"cxc", "eccv"} and found.extra["cxc"].image_to_text == {7: [1, 2], 9: [3]}
    assert found.fold_order().tolist() == [9, 7]
    for name in ("image_to_caption", "caption_to_image"):
        (folder / f"pm_{name}.json").write_text("{}")
    assert GroundTruth.load(tmp_path).extra.keys() == {"cxc", "eccv", "pmrp"}
    (folder / "cxc_image_to_caption.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"cxc_image_to_caption\.json does not map ids"):
        GroundTruth.load(tmp_path)
    (folder / "cxc_image_to_caption.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"cxc_image_to_caption\.json"):
        GroundTruth.load(tmp_path)


def test_a_missing_ground_truth_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="coco_test_ids"):
        GroundTruth.load(tmp_path)


def test_positives_are_what_anybody_calls_a_match_among_the_items_asked_for(truth):
    every = truth.positives(np.array([1, 2, 3, 4]), np.array([7, 9]))
    assert every == {(7, 1), (7, 2), (9, 3), (9, 4), (7, 3), (7, 4), (9, 1)}
    assert truth.positives(np.array([1, 4]), np.array([7])) == {(7, 1), (7, 4)}


def test_other_images_and_captions_without_ids_are_refused(truth):
    truth.check(np.array([9, 7]), np.array([4, 3, 2, 1, 5]))
    with pytest.raises(ValueError, match="other images"):
        truth.check(np.array([7]), np.array([1, 2, 3, 4]))
    for captions in (None, np.array([1, 2, 3])):
        with pytest.raises(ValueError, match="caption_ids"):
            truth.check(np.array([7, 9]), captions)
