"""What a reader makes of a sample: crops that stay inside, and nothing invented."""

import tracemalloc

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision

from encoders import ImageConfig
from mm.readers import FILTER_BYTES, Augment, ImageReader, augmented, random_box, resample, resized


def test_crop_keeps_the_aspect_and_squash_keeps_the_borders():
    image = torch.zeros(3, 20, 60, dtype=torch.uint8)
    image[:, :, :12] = 255  # a white left fifth, well outside the central square
    assert resized(image, 10, "crop").max() == 0
    assert resized(image, 10, "squash")[:, :, 0].min() > 250


@pytest.mark.parametrize("size", [12, 33])
def test_an_image_is_resized_as_pillow_resizes_it(size):
    """Antialiased: the mean of a fine checkerboard, not its corners. torch rounds its weights where Pillow does."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 60, 81), dtype=np.uint8))
    reference = PIL.Image.fromarray(image.permute(1, 2, 0).numpy())
    for fit, box in (("squash", (0, 0, 81, 60)), ("crop", (10, 0, 70, 60))):
        expected = np.array(reference.crop(box).resize((size, size), PIL.Image.Resampling.BICUBIC)).astype(int)
        found = resized(image, size, fit).permute(1, 2, 0).numpy()
        assert np.abs(found - expected).max() <= 1


def test_a_crop_is_resized_as_pillow_resizes_it():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 60, 81), dtype=np.uint8))
    chance = np.array([0.5, 0.2, 0.7, 0.9, 0.9])
    box = random_box(60, 81, Augment(), chance)
    whole = PIL.Image.fromarray(image.permute(1, 2, 0).numpy())
    place = (box.left, box.top, box.left + box.width, box.top + box.height)
    expected = np.array(whole.crop(place).resize((24, 24), PIL.Image.Resampling.BILINEAR)).astype(int)
    found = augmented(image, 24, Augment(), chance).permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 1


def test_crops_stay_inside_the_image_and_cover_the_asked_area():
    for chance in np.random.default_rng(0).random((50, 5)):
        box = random_box(200, 100, Augment(crop_scale=0.25, crop_ratio=1.0), chance)
        assert min(box.top, box.left) >= 0 and box.top + box.height <= 200 and box.left + box.width <= 100
        assert 0.24 < box.height * box.width / 20000 <= 1.0
        assert box.height / box.width == pytest.approx(2, abs=0.05)
    assert random_box(1, 1, Augment(), chance) == (0, 0, 1, 1)


def test_resizing_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        resized(torch.zeros(3, 20, 30, dtype=torch.uint8), 8, "crop")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_features_are_kept_by_whose_arithmetic_made_the_pixels(monkeypatch):
    before = ImageReader(ImageConfig()).settings()
    monkeypatch.setattr(torchvision, "__version__", "0.99.0+cpu")
    assert ImageReader(ImageConfig()).settings() != before


def test_mirroring_is_exact():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8))
    augment = Augment(crop_scale=1.0, flip=True)
    assert torch.equal(augmented(image, 8, augment, np.array([0, 0, 0, 0, 0.1])), image.flip(2))
    assert torch.equal(augmented(image, 8, augment, np.array([0, 0, 0, 0, 0.9])), image)


@pytest.mark.parametrize("bad", [{"crop_scale": 0.0}, {"crop_scale": 1.5}, {"crop_ratio": 0.5}])
def test_impossible_augmentation_is_refused(bad):
    with pytest.raises(ValueError, match="augment"):
        Augment(**bad)


@pytest.mark.parametrize(
    ("rate", "allowed"),
    [(8000, 5e-3), (11025, 5e-3), (22050, 5e-3), (48000, 5e-3), (11127, 5e-3), (47999, 5e-3), (192001, 0.02)],
)
def test_a_tone_keeps_its_frequency_and_size_at_any_rate(rate, allowed):
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    found = resample(tone, rate, 16000)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert found.dtype == np.float32 and abs(len(found) - 16000) <= 1
    assert np.abs(found[500:15500] - expected[500:15500]).max() < allowed


def test_a_tone_that_the_new_rate_cannot_hold_is_gone():
    tone = np.sin(2 * np.pi * 12000 * np.arange(48000) / 48000).astype(np.float32)
    assert np.abs(resample(tone, 48000, 16000)[500:15500]).max() < 5e-3


@pytest.mark.parametrize("rate", [11127, 47999, 65521, 131071, 9_999_991])
def test_no_rate_takes_more_memory_than_is_stated(rate):
    """numpy tells tracemalloc what it allocates; torchaudio's kernel took 5 GB at 11,127 Hz."""
    waveform = np.zeros(16000, np.float32)
    resample(waveform, 8000, 16000)  # imports scipy
    tracemalloc.start()
    found = resample(waveform, rate, 16000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < FILTER_BYTES and len(found) == pytest.approx(16000 * 16000 / rate, abs=1)


@pytest.mark.parametrize("rate", [0, -8000, 99, 2_000_000_000])
def test_a_rate_of_no_audio_is_refused(rate):
    with pytest.raises(ValueError, match="between 100 and 10,000,000 hertz"):
        resample(np.zeros(100, np.float32), rate, 16000)
