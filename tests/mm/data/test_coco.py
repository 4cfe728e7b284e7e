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


def test_an_image_that_does_not_decode_is_named(root):
    path = root / "images" / "photo_002.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"photo_002\.png does not decode") as caught:
        CocoFolder(root, "train")[2]
    assert "\n" not in str(caught.value)
    path.write_bytes(b"no image at all")
    with pytest.raises(ValueError, match=r"photo_002\.png does not decode: cannot identify image file$"):
        CocoFolder(root, "train")[2]


def test_an_audio_clip_that_does_not_decode_is_named(root):
    (root / "audio" / "photo_002.flac").write_bytes(b"fLaC" + bytes(9000))
    with pytest.raises(ValueError, match=r"photo_002\.flac does not decode") as caught:
        CocoFolder(root, "train")[2]
    assert "BytesIO" not in str(caught.value)


def test_an_audio_clip_of_samples_that_are_no_numbers_is_named(root):
    (root / "audio" / "photo_002.flac").unlink()
    soundfile.write(root / "audio" / "photo_002.wav", np.full(6000, np.nan), 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"photo_002\.wav holds samples that are not finite"):
        CocoFolder(root, "train")[2]


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
