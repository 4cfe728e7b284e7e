"""Behaviour: webdataset reads what is written, the same samples are the same bytes, and finished shards are kept."""

import json
from dataclasses import replace

import pytest
import torch
import webdataset

from mm.data import open_split
from mm.data.media import encode_sample, pixels_of
from mm.data.shard_index import index_path, shard_path
from mm.data.shard_writer import SplitWriter, write_shards


@pytest.fixture
def folder(tmp_path, photographs):
    write_shards(photographs(7, audio=True), tmp_path, "train", samples_per_shard=3, image_format="png")
    return tmp_path


def test_webdataset_itself_reads_them(folder, photographs):
    pattern = str(folder / "train-{000000..000002}.tar")
    read = list(webdataset.WebDataset(pattern, shardshuffle=False).decode("pil"))
    samples = photographs(7, audio=True)
    assert [sample["__key__"] for sample in read] == [sample.key for sample in samples]
    assert [tuple(sample["json"]["captions"]) for sample in read] == [sample.captions for sample in samples]
    assert torch.equal(pixels_of(read[4]["png"]), samples[4].image)


def test_the_same_samples_are_the_same_bytes(folder, tmp_path_factory, photographs):
    other = tmp_path_factory.mktemp("again")
    write_shards(photographs(7, audio=True), other, "train", samples_per_shard=3, image_format="png")
    assert shard_path(folder, "train", 1).read_bytes() == shard_path(other, "train", 1).read_bytes()


def test_writing_fewer_shards_leaves_no_older_ones(folder, photographs):
    write_shards(photographs(2), folder, "train", samples_per_shard=3)
    assert [path.name for path in sorted(folder.iterdir())] == ["train-000000.tar", "train.index.json"]


def test_a_finished_shard_is_kept_only_with_its_settings_and_checksum(tmp_path, photographs):
    samples = [encode_sample(sample) for sample in photographs(2)]
    SplitWriter(tmp_path, "train", {"size": 1}).write(0, samples)
    assert SplitWriter(tmp_path, "train", {"size": 2}).finished(0) is None
    assert SplitWriter(tmp_path, "train", {"size": 1}).finished(0) is not None
    path = shard_path(tmp_path, "train", 0)
    path.write_bytes(path.read_bytes()[:-1])
    assert SplitWriter(tmp_path, "train", {"size": 1}).finished(0) is None


def test_bad_samples_are_refused(tmp_path, photographs):
    sample = encode_sample(photographs(1)[0])
    with pytest.raises(ValueError, match="two samples of train have the key 'photo_000'"):
        write_shards([sample, sample], tmp_path, "train", samples_per_shard=1)
    with pytest.raises(ValueError, match="cannot name a tar member"):
        write_shards([replace(sample, key="../x")], tmp_path, "train")
    with pytest.raises(ValueError, match="unknown kind 'heic'"):
        write_shards([replace(sample, members={"heic": b""})], tmp_path, "train")
    with pytest.raises(ValueError, match="no samples to write"):
        write_shards([], tmp_path, "train")


def test_what_was_skipped_stays_on_disk_under_its_old_key(tmp_path, photographs):
    """Shards of earlier versions hold the same keys and are read alike."""
    settings = {"size": 1, "skipped": {"missing image": 2}}
    writer = SplitWriter(tmp_path, "train", settings)
    writer.write(0, [encode_sample(photographs(1)[0])], ["photo_001.jpg does not decode"])
    note = json.loads(shard_path(tmp_path, "train", 0).with_suffix(".json").read_text())
    assert note["record"]["left_out"] == ["photo_001.jpg does not decode"]
    writer.close()
    index = json.loads(index_path(tmp_path, "train").read_text())
    assert list(index) == ["version", "settings", "left_out", "shards", "samples", "digest"]
    assert index["settings"] == settings
    assert index["left_out"] == ["photo_001.jpg does not decode"]
    assert open_split(tmp_path, "train").skipped == {"missing image": 2, "unreadable file": 1}
