"""SugarCrepe: seven forced choices, their mean, and what happens where images or files are missing."""

import json

import numpy as np
import pytest

from eval.intervals import Bootstrap
from eval.sugar_crepe import SUGAR_CREPE, sugar_crepe, sugar_crepe_items

FEW = Bootstrap(20)


@pytest.fixture
def items(tmp_path):
    """Two items for each split; a model that likes `right` fails on both of the first split."""
    for index, split in enumerate(SUGAR_CREPE):
        row = {"caption": "right" if index else "wrong", "negative_caption": "edited!"}
        (tmp_path / f"{split}.json").write_text(
            json.dumps({"0": row | {"filename": "a.jpg"}, "1": row | {"filename": "b.jpg"}})
        )
    return sugar_crepe_items(tmp_path)


def likes_right(names, captions):
    return np.array([float(caption == "right") for caption in captions])


def test_the_mean_is_over_the_seven_splits_and_a_tie_counts_one_half(items):
    found = sugar_crepe(items, likes_right, scored_by="cosine", trained_on="zero-shot", bootstrap=FEW)
    assert found.metrics["add_att"] == 50 and found.metrics["swap_obj"] == 100
    assert found.metrics["mean"] == pytest.approx(650 / 7)
    # Wilson's of two images: 34.24 to 100 in six splits, 9.45 to 90.55 in one.
    assert found.intervals["mean"] == pytest.approx((30.70, 98.65), abs=0.01)
    assert (found.protocol.images, found.protocol.captions, found.protocol.trained_on) == (2, 28, "zero-shot")


def test_the_mean_weighs_splits_and_not_items(items):
    items["swap_obj"] = items["swap_obj"] * 50
    assert sugar_crepe(items, likes_right, bootstrap=FEW).metrics["mean"] == pytest.approx(650 / 7)


def test_a_split_without_images_is_no_number_and_leaves_no_mean(items):
    found = sugar_crepe(items | {"swap_att": []}, likes_right, skipped={"image is missing": 2}, bootstrap=FEW)
    assert "swap_att" not in found.metrics and "mean" not in found.metrics and len(found.metrics) == 6
    assert found.protocol.skipped == {"image is missing": 2} and "2 skipped" in str(found.protocol)
    with pytest.raises(ValueError, match="val2017"):
        sugar_crepe({split: [] for split in SUGAR_CREPE}, likes_right)


@pytest.mark.parametrize("content", ["[]", "{", '{"0": {"filename": "a.jpg"}}', '{"0": 3}'])
def test_another_file_is_named(items, tmp_path, content):
    (tmp_path / "swap_obj.json").write_text(content)
    with pytest.raises(ValueError, match=r"swap_obj\.json is not a SugarCrepe file"):
        sugar_crepe_items(tmp_path)


def test_a_missing_file_is_named(items, tmp_path):
    (tmp_path / "swap_obj.json").unlink()
    with pytest.raises(FileNotFoundError, match="swap_obj"):
        sugar_crepe_items(tmp_path)
