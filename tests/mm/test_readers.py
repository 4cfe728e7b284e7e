"""What a reader makes of a sample: crops that stay inside, and nothing invented."""

import numpy as np
import pytest

from mm.readers import Augment, augmented, resized


def test_crop_keeps_the_aspect_and_squash_keeps_the_borders():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, :12] = 255  # a white left fifth, well outside the central square
    assert resized(image, 10, "crop").max() == 0
    assert resized(image, 10, "squash")[:, 0].min() > 250


def test_crops_stay_inside_the_image_and_cover_the_asked_area():
    """On an image whose value is its column, a crop's values are the columns it covers."""
    image = np.repeat(np.tile(np.arange(200, dtype=np.uint8), (200, 1))[:, :, None], 3, axis=2)
    for chance in np.random.default_rng(0).random((50, 5)):
        crop = augmented(image, 200, Augment(crop_scale=0.25, crop_ratio=1.0), chance)[0, :, 0].astype(float)
        assert (np.diff(crop) >= 0).all()
        assert 0.24 < ((crop[-1] - crop[0]) / 199) ** 2 <= 1.0


def test_mirroring_is_exact():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    augment = Augment(crop_scale=1.0, flip=True)
    assert np.array_equal(augmented(image, 8, augment, np.array([0, 0, 0, 0, 0.1])), image[:, ::-1])
    assert np.array_equal(augmented(image, 8, augment, np.array([0, 0, 0, 0, 0.9])), image)


@pytest.mark.parametrize("bad", [{"crop_scale": 0.0}, {"crop_scale": 1.5}, {"crop_ratio": 0.5}])
def test_impossible_augmentation_is_refused(bad):
    with pytest.raises(ValueError, match="augment"):
        Augment(**bad)
