"""Behaviour: images shrink into shards, what cannot be read is listed, a killed run goes on where it stopped."""

import io
import multiprocessing
import os
import signal

import PIL.Image
import pytest
import torch

from mm.data import open_split
from mm.data.coco import CocoFolder, write_coco
from mm.data.media import pil_image, pixels_of
from mm.data.prepare.shards import Preparation, prepare_split, shrunk
from mm.data.shard_index import shard_path


@pytest.fixture
def source(tmp_path, photographs):
    write_coco(photographs(8, size=(60, 40), audio=True), tmp_path / "coco", "train")
    return CocoFolder(tmp_path / "coco", "train")


def test_shards_hold_the_same_samples_smaller(source, tmp_path):
    done = prepare_split(source, tmp_path / "shards", "train", Preparation(size=20, samples_per_shard=3))
    dataset = open_split(tmp_path / "shards", "train")
    assert done.samples == len(dataset) == 8 and done.skipped == []
    assert dataset.image_ids == source.image_ids and dataset.captions == source.captions
    assert dataset.caption_ids == source.caption_ids and all(dataset.has_audio)
    assert dataset[5].image.shape == (3, 20, 30)
    reference = pixels_of(pil_image(source[5].image).resize((30, 20), PIL.Image.Resampling.BICUBIC)).float()
    assert (dataset[5].image - reference).abs().mean() < 6


def test_an_image_that_is_small_enough_keeps_its_bytes(source, tmp_path):
    assert prepare_split(source, tmp_path / "shards", "train", Preparation(size=40)).reencoded == 0
    assert open_split(tmp_path / "shards", "train").encoded(0).members["jpg"] == source.files[0].read_bytes()


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        (20, "short", (30, 20)),
        (30, "long", (30, 20)),
        (40, "short", (60, 40)),
        (100, "long", (60, 40)),
    ],
)
def test_either_side_can_be_measured_and_nothing_grows(size, side, expected):
    assert shrunk(torch.zeros(3, 40, 60, dtype=torch.uint8), size, side).shape[:0:-1] == expected


def test_what_cannot_be_read_is_listed_and_the_rest_goes_on(source, tmp_path):
    source.files[2].write_bytes(b"not an image")
    source.files[4].unlink()
    (tmp_path / "coco" / "audio" / "photo_006.flac").write_bytes(bytes(10000))
    done = prepare_split(source, tmp_path / "shards", "train", Preparation(samples_per_shard=3))
    dataset = open_split(tmp_path / "shards", "train")
    assert len(done.skipped) == 3
    for line, name in zip(done.skipped, ["photo_002.jpg", "photo_004.jpg", "photo_006.flac"], strict=True):
        assert name in line and "\n" not in line
    assert dataset.image_ids == [100, 101, 103, 105, 106, 107] and dataset.skipped == {"unreadable file": 3}
    assert [dataset.has_audio[i] for i in (3, 4, 5)] == [True, False, True]


def test_shards_still_count_what_the_folder_lacked(source, tmp_path):
    source.files[2].unlink()
    lacking = CocoFolder(tmp_path / "coco", "train")
    prepare_split(lacking, tmp_path / "shards", "train", Preparation())
    assert open_split(tmp_path / "shards", "train").skipped == lacking.skipped == {"missing image": 1}


def test_images_of_every_mode_and_format_come_out_as_rgb(tmp_path, photographs):
    write_coco(photographs(4), tmp_path / "coco", "train")
    source = CocoFolder(tmp_path / "coco", "train")
    for path, (mode, file_format) in zip(
        source.files, [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("LA", "PNG")], strict=True
    ):
        buffer = io.BytesIO()
        PIL.Image.open(path).convert("L").convert(mode).save(buffer, file_format)
        path.write_bytes(buffer.getvalue())
    assert prepare_split(source, tmp_path / "shards", "train", Preparation()).skipped == []
    assert {tuple(open_split(tmp_path / "shards", "train")[i].image.shape) for i in range(4)} == {(3, 16, 24)}


def _prepare_and_die(source, folder, after):
    """Runs in a process of its own that is killed, without warning, once `after` images are dealt with."""
    count = 0

    def advance(more):
        nonlocal count
        count += more
        if count >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    prepare_split(source, folder, "train", Preparation(size=20, samples_per_shard=3), advance=advance)


@pytest.mark.filterwarnings("ignore")
def test_a_killed_run_goes_on_where_it_stopped(source, tmp_path):
    preparation = Preparation(size=20, samples_per_shard=3)
    prepare_split(source, tmp_path / "whole", "train", preparation)
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_prepare_and_die, args=(source, tmp_path / "shards", 5))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    first = shard_path(tmp_path / "shards", "train", 0)
    written = first.stat().st_mtime_ns
    with pytest.raises(ValueError, match="interrupted"):
        open_split(tmp_path / "shards", "train")

    done = prepare_split(source, tmp_path / "shards", "train", preparation, workers=2)
    assert done.kept_shards == 1 and first.stat().st_mtime_ns == written and done.samples == 8
    assert {p.name: p.read_bytes() for p in (tmp_path / "shards").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()
    }


def test_a_finished_split_is_left_alone_until_something_changes(source, tmp_path):
    source.files[2].write_bytes(b"not an image")

    def prepare(**changes):
        return prepare_split(source, tmp_path, "train", Preparation(samples_per_shard=3, **changes))

    assert prepare().kept_shards == 0
    again = prepare()
    assert again.kept_shards == 3 and again.samples == 7 and len(again.skipped) == 1
    assert prepare(size=10).kept_shards == 0
    source.captions[0] = ("another caption", *source.captions[0][1:])
    assert prepare(size=10).kept_shards == 0 and open_split(tmp_path, "train").captions[0][0] == "another caption"


@pytest.mark.parametrize("bad", [{"size": 0}, {"quality": 0}, {"quality": 100}, {"samples_per_shard": 0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match="it must be a whole number in"):
        Preparation(**bad)
