"""Behaviour: every random choice is a function of (seed, epoch, index); absent things are marked, not invented."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from encoders import AudioConfig, ImageConfig
from mm.data import open_split, views
from mm.data.coco import write_coco
from mm.data.collate import Collate
from mm.data.dataset import require_readable
from mm.data.sampling import StepSampler
from mm.data.views import EvalView, TrainView
from mm.modalities import build_readers
from mm.readers import Augment


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


def readers(size=16, seconds=0.05, sample_rate=16000, only=("image", "audio")):
    configs = {"image": ImageConfig(size=size), "audio": AudioConfig(seconds=seconds, sample_rate=sample_rate)}
    return build_readers({modality: configs[modality] for modality in only})


DEFAULT = readers()


def view(dataset, readers=DEFAULT, **changes):
    return TrainView(dataset, readers, **{"augment": Augment(flip=True), "seed": 5, **changes})


def batch_of(examples, readers=DEFAULT):
    return Collate(readers, letters)(examples)


def same(a, b):
    return a.captions == b.captions and all(np.array_equal(row, b.rows[m]) for m, row in a.rows.items())


def test_an_example_depends_on_seed_epoch_and_index_only(dataset):
    one, other, cached = view(dataset), view(dataset), view(dataset, keep=True)
    keys = [(index, epoch) for epoch in (0, 1) for index in (0, 4)]
    examples = {key: one[key] for key in keys}
    for key in reversed(keys):  # asked in another order, of another view, with and without a cache, twice
        for again in (other, cached, cached):
            assert same(again[key], examples[key])
    assert not np.array_equal(examples[0, 0].rows["image"], examples[0, 1].rows["image"])
    assert not np.array_equal(examples[0, 0].rows["image"], view(dataset, seed=6)[0, 0].rows["image"])


def test_a_full_cache_changes_nothing_but_says_so(dataset, monkeypatch, caplog):
    monkeypatch.setattr(views, "CACHE_BYTES", 3000)  # two samples' worth
    full, free = view(dataset, keep=True), view(dataset)
    for _ in range(2):
        for index in range(6):
            assert same(full[index, 0], free[index, 0])
    assert len(caplog.records) == 1 and "decoded anew" in caplog.text


def test_what_is_not_wanted_is_left_out_of_the_batch(dataset):
    for wanted in ((), ("audio",), ("image",)):
        example = view(dataset, readers(only=wanted))[0, 0]
        assert batch_of([example]).modalities == (*wanted, "text")


def test_loader_workers_change_nothing(dataset):
    def batches(workers):
        sampler = StepSampler(len(dataset), 3, 4, seed=1)
        return list(DataLoader(view(dataset), batch_sampler=sampler, collate_fn=batch_of, num_workers=workers))

    for alone, helped in zip(batches(0), batches(2), strict=True):
        assert torch.equal(alone.ids, helped.ids)
        for name, tensor in alone.inputs.items():
            assert torch.equal(tensor, helped.inputs[name])


def test_turning_augmentation_off_keeps_the_caption(dataset):
    for epoch in range(5):
        assert view(dataset)[1, epoch].captions == view(dataset, augment=None)[1, epoch].captions


def test_every_caption_is_drawn_about_as_often(dataset):
    drawn = Counter(view(dataset, readers={})[1, epoch].captions[0] for epoch in range(600))
    assert set(drawn) == set(dataset.captions[1]) and min(drawn.values()) > 150


def test_several_captions_of_a_sample_come_one_after_the_other(dataset):
    source = view(dataset, readers={}, captions=2)
    examples = [source[index, 3] for index in range(4)]
    for i, example in enumerate(examples):
        assert len(set(example.captions)) == 2 and set(example.captions) <= set(dataset.captions[i])
    assert all(e.captions[:1] == view(dataset, readers={})[i, 3].captions for i, e in enumerate(examples))
    batch = batch_of(examples)
    found = ["".join(map(chr, row[row > 0].tolist())) for row in batch.inputs["text"]]
    assert found == [e.captions[k] for e in examples for k in (0, 1)]
    assert len(batch) == 4 and batch.sample_index["text"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_only_the_first_captions_are_drawn_where_they_are_limited(dataset):
    drawn = {view(dataset, readers={}, limit_captions=2)[1, epoch].captions[0] for epoch in range(60)}
    assert drawn == set(dataset.captions[1][:2]) and len(dataset.captions[1]) > 2


def test_captions_recur_where_an_image_has_too_few(dataset):
    drawn = view(dataset, readers={}, captions=7)[0, 0].captions
    assert len(drawn) == 7 and set(drawn) == set(dataset.captions[0])


def test_a_batch_marks_what_is_absent(dataset):
    source = view(dataset)
    batch = batch_of([source[index, 0] for index in range(6)])
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
    assert batch_of([source[0, 0], source[1, 0]]).modalities == ("image", "text")


def test_short_audio_is_padded_and_long_audio_cut(dataset):
    longer = readers(seconds=0.2)
    padded = batch_of([view(dataset, longer)[0, 0]], longer)
    assert padded.masks["audio"].sum() == 1600 and padded.inputs["audio"].shape == (1, 3200)
    assert not padded.inputs["audio"][0, 1600:].any()
    whole = EvalView(dataset, readers(seconds=0.1))[0].rows["audio"]
    cuts = [view(dataset)[0, epoch].rows["audio"] for epoch in range(8)]
    assert len({tuple(cut.tolist()) for cut in cuts}) > 1
    for cut in cuts:
        assert any(np.array_equal(cut, whole[first : first + 800]) for first in range(801))


def test_audio_of_another_rate_is_resampled_not_misread(dataset):
    """A tone keeps its frequency: 200 Hz of image 0, whether the model listens at 16 or at 8 kHz."""
    for rate in (16000, 8000):
        audio = EvalView(dataset, readers(seconds=0.1, sample_rate=rate))[0].rows["audio"]
        assert len(audio) == rate // 10
        strongest = np.argmax(np.abs(np.fft.rfft(audio))) * rate / len(audio)
        assert strongest == pytest.approx(200, abs=10)


def test_an_unreadable_picture_is_an_absence_and_changes_nothing_else(dataset):
    whole = [view(dataset)[index, 0] for index in (1, 2)]
    dataset.files[2].write_bytes(b"not a picture")
    read = [view(dataset)[index, 0] for index in (1, 2)]
    batch = batch_of(read)
    assert batch.present["image"].tolist() == [True, False] and not batch.inputs["image"][1].any()
    assert same(whole[0], read[0]) and whole[1].captions == read[1].captions
    assert np.array_equal(whole[1].rows["audio"], read[1].rows["audio"])


def test_a_split_that_cannot_be_read_is_refused(dataset):
    for path in dataset.files[:3]:
        path.write_bytes(b"not a picture")
    require_readable(dataset)  # one half of it
    dataset = open_split(dataset.root, "train")
    dataset.files[3].write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"train: 4 of 6 image files that were tried do not decode, the first: .*000"):
        require_readable(dataset)


def test_eval_view_lists_every_caption_with_its_image(dataset):
    source = EvalView(dataset, readers())
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

    stack = Collate({}, tokenizer)
    ids = torch.tensor([1, 2])
    stack.text(["ab", "abcd"], ids)
    batch = stack.text(["abcd", "a"], ids)
    assert asked == ["ab", "abcd", "a"]
    assert batch.inputs["text"].tolist() == [[97, 98, 99, 100], [97, 0, 0, 0]]
    assert batch.masks["text"].tolist() == [[True] * 4, [True, False, False, False]]
    assert batch.present["text"].all()
