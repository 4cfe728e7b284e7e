"""Behaviour: any COCO caption layout is read, and what is wrong with it is a one-line error or a counted skip."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mm.data import open_split
from mm.data.coco import CocoFolder, write_coco

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"


@pytest.fixture
def root(tmp_path, photographs):
    write_coco(photographs(4, audio=True), tmp_path, "train", image_format="png")
    return tmp_path


def test_what_was_written_is_read_back(root, photographs, text_of):
    dataset = open_split(root, "train")
    assert dataset.modalities == {"image", "audio", "text"} and dataset.skipped == {} and len(dataset) == 4
    for position, sample in enumerate(photographs(4, audio=True)):
        read = dataset[position]
        assert text_of(read) == text_of(sample)
        assert np.array_equal(np.asarray(read.image), np.asarray(sample.image))
        assert read.sample_rate == 16000 and np.allclose(read.audio, sample.audio, atol=1 / 32000)


def test_a_stamp_is_another_once_a_file_of_its_modality_changes(root):
    before = {source: CocoFolder(root, "train").stamp(source) for source in ("image", "audio")}
    (root / "images" / "photo_002.png").touch()
    assert CocoFolder(root, "train").stamp("image") != before["image"]
    assert CocoFolder(root, "train").stamp("audio") == before["audio"]
    (root / "audio" / "photo_002.flac").unlink()
    assert CocoFolder(root, "train").stamp("audio") != before["audio"]


def test_a_stamp_says_nothing_of_the_folder(root):
    before = CocoFolder(root, "train").stamp("image")
    moved = root.rename(root.with_name(f"{root.name}_moved"))
    assert CocoFolder(moved, "train").stamp("image") == before


def test_samples_that_the_layout_cannot_hold_are_refused(tmp_path, photographs):
    sample = photographs(1)[0]
    for samples in ([sample, sample], [replace(sample, image=None)]):
        with pytest.raises(ValueError, match="'photo_000' of train has no image, or its key occurs twice"):
            write_coco(samples, tmp_path, "train")


def test_nothing_is_printed(root, capsys):
    CocoFolder(root, "train")
    assert capsys.readouterr().out == ""


def test_skips_are_counted_and_reported_in_one_line(root, edit, caplog):
    def spoil(content):
        content["images"] += [{"id": 900, "file_name": "gone.jpg"}, {"id": 901, "file_name": "photo_000.png"}]
        content["annotations"][0]["caption"] = "   "
        content["annotations"][2]["caption"] = None
        content["annotations"] += [
            {"id": 800, "image_id": 900, "caption": "an image that is not there"},
            {"id": 801, "image_id": 77777, "caption": "an annotation of nothing"},
        ]

    edit(root / "annotations" / "captions_train.json", spoil)
    soundfile.write(root / "audio" / "photo_001.flac", np.zeros(0), 16000)
    with caplog.at_level(logging.WARNING):
        dataset = CocoFolder(root, "train")
    assert dataset.skipped == {
        "missing image": 1,
        "empty caption": 2,
        "image without captions": 1,
        "annotation of unknown images": 1,
        "zero-length audio": 1,
    }
    assert dataset.missing == ["gone.jpg"]
    assert dataset.captions[0] == ("image 0, caption 1",)
    assert dataset.has_audio == [True, False, True, True] and dataset[1].audio is None
    assert len(caplog.records) == 1 and "missing image" in caplog.text


def test_missing_folder_and_split_are_named(root):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        open_split(root / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"captions_test\.json; the splits there are train"):
        open_split(root, "test")


def test_a_split_without_any_image_says_which_is_missing(root):
    shutil.rmtree(root / "images")
    with pytest.raises(ValueError, match=r"4 × missing image.*photo_000\.png"):
        CocoFolder(root, "train")


@pytest.mark.parametrize("damage", [lambda data: data[:60], lambda data: b"no image at all", lambda data: b""])
def test_an_image_that_does_not_decode_is_absent_and_named_once(root, caplog, damage):
    path = root / "images" / "photo_002.png"
    path.write_bytes(damage(path.read_bytes()))
    dataset = CocoFolder(root, "train")
    for _ in range(2):
        sample = dataset[2]
        assert sample.image is None and sample.audio is not None and sample.captions
    assert dataset[1].image is not None and dataset.skipped == {"unreadable image": 1}
    (line,) = [line for line in caplog.messages if "does not decode" in line]
    assert "photo_002.png does not decode" in line and "\n" not in line and "BytesIO" not in line


def test_a_file_that_is_gone_since_is_absent_and_named(root, caplog):
    dataset = CocoFolder(root, "train")
    (root / "images" / "photo_002.png").unlink()
    assert dataset[2].image is None and dataset.skipped == {"unreadable image": 1}
    assert "photo_002.png" in caplog.text


@pytest.mark.parametrize("size", [0, 100, 9000])
def test_an_audio_clip_that_does_not_decode_is_absent_and_named(root, caplog, size):
    """A short one is opened to count its samples, a long one when it is read."""
    (root / "audio" / "photo_002.flac").write_bytes(b"fLaC" + bytes(size))
    dataset = CocoFolder(root, "train")
    sample = dataset[2]
    assert sample.audio is None and sample.sample_rate == 0 and sample.image is not None
    assert dataset.skipped == {"unreadable audio": 1} and "photo_002.flac does not decode" in caplog.text


def test_samples_that_are_no_numbers_and_rates_of_no_audio_are_named(root, caplog):
    for name, samples, rate in (("photo_001", np.full(6000, np.nan), 16000), ("photo_002", np.zeros(6000), 7)):
        (root / "audio" / f"{name}.flac").unlink()
        soundfile.write(root / "audio" / f"{name}.wav", samples, rate, subtype="FLOAT")
    dataset = CocoFolder(root, "train")
    assert dataset[1].audio is None and dataset[2].audio is None and dataset.skipped == {"unreadable audio": 2}
    assert "photo_001.wav holds samples that are not finite" in caplog.text
    assert "photo_002.wav claims 7 hertz" in caplog.text


@pytest.mark.parametrize("extension", ["mp3", "ogg", "aiff"])
def test_audio_is_read_as_libsndfile_reads_it(root, extension):
    (root / "audio" / "photo_000.flac").unlink()
    tone = 0.5 * np.sin(2 * np.pi * 500 * np.arange(8000) / 16000)
    soundfile.write(root / "audio" / f"photo_000.{extension}", tone, 16000)
    dataset = CocoFolder(root, "train")
    sample = dataset[0]
    assert dataset.has_audio[0] and dataset.skipped == {} and sample.sample_rate == 16000
    strongest = np.argmax(np.abs(np.fft.rfft(sample.audio[:8000]))) * 16000 / len(sample.audio[:8000])
    assert strongest == pytest.approx(500, abs=10)


def test_audio_of_a_kind_that_is_not_read_is_counted_by_its_extension(root):
    """Only where it is an image's, and nothing else of that name can be read."""
    (root / "audio" / "photo_000.flac").rename(root / "audio" / "photo_000.m4a")
    for name in ("photo_001.m4a", "speech.json", "stranger.m4a"):
        (root / "audio" / name).write_bytes(b"x")
    dataset = CocoFolder(root, "train")
    assert dataset.has_audio[:2] == [False, True]
    assert dataset.skipped == {"audio of a kind that is not read (.m4a)": 1}


def test_of_two_audio_clips_of_one_image_the_exact_one_is_read(root):
    for extension, rate in (("mp3", 16000), ("wav", 8000)):
        soundfile.write(root / "audio" / f"photo_000.{extension}", np.zeros(4000), rate)
    assert CocoFolder(root, "train")[0].sample_rate == 8000


def test_stereo_becomes_the_mean_and_keeps_its_rate(root):
    (root / "audio" / "photo_000.flac").unlink()
    soundfile.write(root / "audio" / "photo_000.wav", np.tile([[0.5, 0.0]], (6000, 1)), 22050)
    sample = CocoFolder(root, "train")[0]
    assert sample.sample_rate == 22050 and sample.audio.shape == (6000,) and np.allclose(sample.audio, 0.25, atol=1e-4)


def test_audio_may_lie_elsewhere(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move(root / "audio", elsewhere / "audio")
    assert "audio" not in open_split(root, "train").modalities
    assert all(open_split(root, "train", audio_root=elsewhere).has_audio)


@pytest.mark.skipif(not (SHARED / "coco_mini").is_dir(), reason="../shared/data/coco_mini is not there")
def test_real_photographs_are_read():
    dataset = open_split(SHARED / "coco_mini", "val")
    assert len(dataset) == 163 and dataset.skipped == {} and all(len(captions) >= 5 for captions in dataset.captions)
    assert dataset[0].key == f"{dataset.image_ids[0]:012d}" and max(dataset[0].image.shape) <= 320
