"""Behaviour: every random choice is a function of (seed, epoch, index); absent things are marked, not invented."""

import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mm.data import collate, open_split
from mm.data.coco import write_coco
from mm.data.collate import Augment, Collate, EvalView, TrainView, augmented, resized
from mm.data.sampling import StepSampler


def letters(captions):
    """A tokenizer of one token per letter, padded to the longest."""
    length = max(map(len, captions))
    tokens = torch.tensor([[ord(c) for c in caption.ljust(length, "\0")] for caption in captions])
    return tokens, tokens > 0


@pytest.fixture
def dataset(tmp_path, photographs):
    samples = photographs(6, audio=True)
    samples[3] = replace(samples[3], audio=None, sample_rate=0)
    write_coco(samples, tmp_path, "train", image_format="png")
    return open_split(tmp_path, "train")


def view(dataset, **changes):
    settings = {"image_size": 16, "augment": Augment(flip=True), "audio_seconds": 0.05, "seed": 5, **changes}
    return TrainView(dataset, **settings)


def same(a, b):
    return a.captions == b.captions and torch.equal(a.image, b.image) and torch.equal(a.audio, b.audio)


def test_an_example_depends_on_seed_epoch_and_index_only(dataset):
    one, other, cached = view(dataset), view(dataset), view(dataset, cache=True)
    keys = [(index, epoch) for epoch in (0, 1) for index in (0, 4)]
    examples = {key: one[key] for key in keys}
    for key in reversed(keys):  # asked in another order, of another view, with and without a cache, twice
        for again in (other, cached, cached):
            assert same(again[key], examples[key])
    assert not torch.equal(examples[0, 0].image, examples[0, 1].image)
    assert not torch.equal(examples[0, 0].image, view(dataset, seed=6)[0, 0].image)


def test_a_full_cache_changes_nothing_but_says_so(dataset, monkeypatch, caplog):
    monkeypatch.setattr(collate, "CACHE_BYTES", 3000)  # two samples' worth
    full, free = view(dataset, cache=True), view(dataset)
    for _ in range(2):
        for index in range(6):
            assert same(full[index, 0], free[index, 0])
    assert len(caplog.records) == 1 and "decoded anew" in caplog.text


def test_what_is_not_wanted_is_left_out_of_the_batch(dataset):
    for wanted in ((), ("audio",), ("image",)):
        example = view(dataset, decode=wanted)[0, 0]
        assert Collate(letters)([example]).modalities == (*wanted, "text")


def test_loader_workers_change_nothing(dataset):
    def batches(workers):
        sampler = StepSampler(len(dataset), 3, 4, seed=1)
        return list(DataLoader(view(dataset), batch_sampler=sampler, collate_fn=Collate(letters), num_workers=workers))

    for alone, helped in zip(batches(0), batches(2), strict=True):
        assert torch.equal(alone.ids, helped.ids)
        for name, tensor in alone.inputs.items():
            assert torch.equal(tensor, helped.inputs[name])


def test_turning_augmentation_off_keeps_the_caption(dataset):
    for epoch in range(5):
        assert view(dataset)[1, epoch].captions == view(dataset, augment=None)[1, epoch].captions


def test_every_caption_is_drawn_about_as_often(dataset):
    drawn = Counter(view(dataset, decode=())[1, epoch].captions[0] for epoch in range(600))
    assert set(drawn) == set(dataset.captions[1]) and min(drawn.values()) > 150


def test_several_captions_come_one_of_each_sample_after_the_other(dataset):
    source = view(dataset, captions=2, decode=())
    examples = [source[index, 3] for index in range(4)]
    for i, example in enumerate(examples):
        assert len(set(example.captions)) == 2 and set(example.captions) <= set(dataset.captions[i])
    assert all(e.captions[:1] == view(dataset, decode=())[i, 3].captions for i, e in enumerate(examples))
    batch = Collate(letters)(examples)
    found = ["".join(map(chr, row[row > 0].tolist())) for row in batch.inputs["text"]]
    assert found == [e.captions[k] for k in (0, 1) for e in examples] and len(batch.ids) == 4


def test_only_the_first_captions_are_drawn_where_they_are_limited(dataset):
    drawn = {view(dataset, limit_captions=2, decode=())[1, epoch].captions[0] for epoch in range(60)}
    assert drawn == set(dataset.captions[1][:2]) and len(dataset.captions[1]) > 2


def test_captions_recur_where_an_image_has_too_few(dataset):
    drawn = view(dataset, captions=7, decode=())[0, 0].captions
    assert len(drawn) == 7 and set(drawn) == set(dataset.captions[0])


def test_a_batch_marks_what_is_absent(dataset):
    source = view(dataset)
    batch = Collate(letters)([source[index, 0] for index in range(6)])
    assert batch.ids.tolist() == dataset.image_ids and batch.modalities == ("image", "audio", "text")
    assert batch.inputs["image"].shape == (6, 3, 16, 16) and batch.inputs["image"].dtype == torch.uint8
    assert batch.inputs["audio"].shape == batch.masks["audio"].shape == (6, 800)
    assert batch.inputs["audio"].dtype == torch.float32 and batch.inputs["audio"].abs().max() <= 1
    assert batch.present["audio"].tolist() == [True, True, True, False, True, True]
    assert not batch.masks["audio"][3].any() and not batch.inputs["audio"][3].any()
    assert batch.masks["audio"][0].all() and batch.present["image"].all() and batch.present["text"].all()


def test_a_set_without_sound_makes_batches_without_sound(tmp_path, photographs):
    write_coco(photographs(2), tmp_path, "train")
    source = view(open_split(tmp_path, "train"))
    assert Collate(letters)([source[0, 0], source[1, 0]]).modalities == ("image", "text")


def test_short_sound_is_padded_and_long_sound_cut(dataset):
    padded = Collate(letters)([view(dataset, audio_seconds=0.2)[0, 0]])
    assert padded.masks["audio"].sum() == 1600 and padded.inputs["audio"].shape == (1, 3200)
    assert not padded.inputs["audio"][0, 1600:].any()
    whole = EvalView(dataset, image_size=16, audio_seconds=0.1)[0].audio
    cuts = [view(dataset)[0, epoch].audio for epoch in range(8)]
    assert len({tuple(cut.tolist()) for cut in cuts}) > 1
    for cut in cuts:
        assert any(torch.equal(cut, whole[first : first + 800]) for first in range(801))


def test_sound_of_another_rate_is_resampled_not_misread(dataset):
    """A tone keeps its frequency: 200 Hz of image 0, whether the model listens at 16 or at 8 kHz."""
    for rate in (16000, 8000):
        sound = EvalView(dataset, image_size=16, audio_seconds=0.1, sample_rate=rate)[0].audio.numpy()
        assert len(sound) == rate // 10
        strongest = np.argmax(np.abs(np.fft.rfft(sound))) * rate / len(sound)
        assert strongest == pytest.approx(200, abs=10)


def test_an_unreadable_picture_is_an_error_or_an_absence(dataset, caplog):
    dataset.files[2].write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"photo_002\.png does not decode"):
        view(dataset)[2, 0]
    lenient = view(dataset, unreadable="skip")
    with caplog.at_level(logging.WARNING):
        batch = Collate(letters)([lenient[1, 0], lenient[2, 0]])
    assert batch.present["image"].tolist() == [True, False] and not batch.inputs["image"][1].any()
    assert "photo_002.png" in caplog.text


def test_eval_view_lists_every_caption_with_its_image(dataset):
    source = EvalView(dataset, image_size=16)
    assert source.captions == [caption for captions in dataset.captions for caption in captions]
    for caption, image_id, caption_id in zip(
        source.captions, source.caption_image_ids.tolist(), source.caption_ids.tolist(), strict=True
    ):
        position = dataset.image_ids.index(image_id)
        assert dataset.caption_ids[position][dataset.captions[position].index(caption)] == caption_id
    assert source.image_ids.tolist() == dataset.image_ids


def test_a_caption_is_tokenized_once_and_padded_like_its_neighbours():
    asked = []

    def tokenizer(captions):
        asked.extend(captions)
        return letters(captions)

    stack, ids = Collate(tokenizer), torch.tensor([1, 2])
    stack.text(["ab", "abcd"], ids)
    batch = stack.text(["abcd", "a"], ids)
    assert asked == ["ab", "abcd", "a"]
    assert batch.inputs["text"].tolist() == [[97, 98, 99, 100], [97, 0, 0, 0]]
    assert batch.masks["text"].tolist() == [[True] * 4, [True, False, False, False]]
    assert batch.present["text"].all()


def test_crop_keeps_the_aspect_and_squash_keeps_the_borders():
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, :12] = 255  # a white left fifth, well outside the central square
    assert resized(picture, 10, "crop").max() == 0
    assert resized(picture, 10, "squash")[:, 0].min() > 250


def test_crops_stay_inside_the_picture_and_cover_the_asked_area():
    """On an image whose value is its column, a crop's values are the columns it covers."""
    picture = np.repeat(np.tile(np.arange(200, dtype=np.uint8), (200, 1))[:, :, None], 3, axis=2)
    for chance in np.random.default_rng(0).random((50, 5)):
        crop = augmented(picture, 200, Augment(crop_scale=0.25, crop_ratio=1.0), chance)[0, :, 0].astype(float)
        assert (np.diff(crop) >= 0).all()
        assert 0.24 < ((crop[-1] - crop[0]) / 199) ** 2 <= 1.0


def test_mirroring_is_exact():
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    augment = Augment(crop_scale=1.0, flip=True)
    assert np.array_equal(augmented(picture, 8, augment, np.array([0, 0, 0, 0, 0.1])), picture[:, ::-1])
    assert np.array_equal(augmented(picture, 8, augment, np.array([0, 0, 0, 0, 0.9])), picture)


@pytest.mark.parametrize("bad", [{"crop_scale": 0.0}, {"crop_scale": 1.5}, {"crop_ratio": 0.5}])
def test_impossible_augmentation_is_refused(bad):
    with pytest.raises(ValueError, match="augment"):
        Augment(**bad)


def test_impossible_sizes_are_refused(dataset):
    with pytest.raises(ValueError, match="must be positive"):
        view(dataset, image_size=0)
