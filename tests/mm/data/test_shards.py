"""Behaviour: shards read back exactly, by position, and damage is named."""

import io
import json
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from mm.data import open_split, shards
from mm.data.media import EncodedSample, encode_audio, encode_sample
from mm.data.shard_index import index_path, shard_path
from mm.data.shard_writer import write_shards
from mm.data.shards import ShardFolder


@pytest.fixture
def folder(tmp_path, photographs):
    write_shards(photographs(7, audio=True), tmp_path, "train", samples_per_shard=3, image_format="png")
    return tmp_path


def contents(dataset):
    samples = [dataset[i] for i in range(len(dataset))]
    return [
        (s.key, s.image_id, s.captions, s.caption_ids, np.asarray(s.image).tobytes(), s.audio.tobytes(), s.sample_rate)
        for s in samples
    ]


def test_what_was_written_is_read_back_in_any_order(folder, photographs, text_of):
    dataset = open_split(folder, "train")
    assert isinstance(dataset, ShardFolder) and len(list(folder.glob("train-*.tar"))) == 3
    assert dataset.modalities == {"image", "audio", "text"}
    samples = photographs(7, audio=True)
    for position in (6, 0, 3, 3):
        read, sample = dataset[position], samples[position]
        assert text_of(read) == text_of(sample)
        assert np.array_equal(np.asarray(read.image), np.asarray(sample.image))
        assert np.allclose(read.audio, sample.audio, atol=1 / 32000)
    dataset.verify()


def test_a_stamp_is_another_once_a_shard_changes(folder):
    before = open_split(folder, "train").stamp("image")
    assert open_split(folder, "train").stamp("image") == before
    shard_path(folder, "train", 1).touch()
    assert open_split(folder, "train").stamp("image") != before


def test_a_stamp_tells_modalities_and_places_apart(folder, edit):
    before = {source: open_split(folder, "train").stamp(source) for source in ("image", "audio")}
    assert before["image"] != before["audio"]
    edit(index_path(folder, "train"), lambda content: content["samples"].reverse())
    assert open_split(folder, "train").stamp("image") != before["image"]


def test_an_index_that_is_lost_is_rebuilt_from_the_tars(folder, caplog):
    before = contents(open_split(folder, "train"))
    index_path(folder, "train").unlink()
    assert contents(open_split(folder, "train")) == before
    assert "no index" in caplog.text


@pytest.mark.parametrize("damage", [bytes([7]), bytes(512)], ids=["a byte", "a block of zeros"])
def test_a_damaged_member_header_is_no_end_of_the_shard(folder, damage):
    """tarfile ends at either without a word, and the samples behind it would be lost."""
    index_path(folder, "train").unlink()
    path = shard_path(folder, "train", 1)
    with tarfile.open(path) as tar:
        header = tar.getmembers()[4].offset
    content = path.read_bytes()
    path.write_bytes(content[:header] + damage + content[header + len(damage) :])
    with pytest.raises(ValueError, match=rf"train-000001\.tar is truncated or damaged: .* at byte {header:,}"):
        open_split(folder, "train")


def test_an_index_is_as_it_was_written(folder):
    path = index_path(folder, "train")
    content = path.read_text()
    path.write_text(content.replace("photo", "phone", 1))
    with pytest.raises(ValueError, match="is not as it was written; delete it to have it rebuilt"):
        open_split(folder, "train")


PLACES = {
    "no shard": lambda sample: sample.pop("shard"),
    "a shard that is not there": lambda sample: sample.update(shard=3),
    "the last shard by a negative number": lambda sample: sample.update(shard=-1),
    "no members": lambda sample: sample.update(members=None),
    "an offset alone": lambda sample: sample["members"].update(png=[512]),
    "a fraction": lambda sample: sample["members"].update(png=[512, 1.5]),
    "behind the end": lambda sample: sample["members"].update(png=[512, 10**9]),
    "before the beginning": lambda sample: sample["members"].update(png=[-512, 10]),
    "no name": lambda sample: sample.update(key=None),
}


@pytest.mark.parametrize("change", PLACES.values(), ids=PLACES.keys())
def test_an_index_of_an_earlier_version_says_where_members_lie(folder, edit, change):
    edit(index_path(folder, "train"), lambda content: change(content["samples"][1]))
    with pytest.raises(ValueError, match=r"lists what is no sample .* delete it to have it rebuilt"):
        open_split(folder, "train")


@pytest.mark.parametrize("name, value", [("name", 5), ("size", None), ("size", True), ("sha256", [])])
def test_an_index_of_an_earlier_version_lists_shards(folder, edit, name, value):
    edit(index_path(folder, "train"), lambda content: content["shards"][0].update({name: value}))
    with pytest.raises(ValueError, match="delete it to have it rebuilt"):
        open_split(folder, "train")


@pytest.mark.parametrize("with_index", [True, False])
def test_a_truncated_shard_is_named(folder, with_index):
    path = shard_path(folder, "train", 1)
    path.write_bytes(path.read_bytes()[:-11000])
    if not with_index:
        index_path(folder, "train").unlink()
    with pytest.raises(ValueError, match=r"train-000001\.tar is truncated") as caught:
        open_split(folder, "train")
    assert "\n" not in str(caught.value)


def test_a_shard_cut_between_two_members_is_noticed(folder):
    """tarfile reads such a file without complaint; only the end-of-archive blocks are missing."""
    path = shard_path(folder, "train", 0)
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset])
    index_path(folder, "train").unlink()
    with pytest.raises(ValueError, match=r"train-000000\.tar is truncated"):
        open_split(folder, "train")


def test_a_flipped_byte_fails_the_checksum(folder):
    path = shard_path(folder, "train", 2)
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"train-000002\.tar does not match its checksum"):
        open_split(folder, "train").verify()


def test_a_lost_shard_and_a_broken_index_are_named(folder):
    shard_path(folder, "train", 2).unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000002\.tar is in the index but not on disk"):
        open_split(folder, "train")
    index_path(folder, "train").write_text("{")
    with pytest.raises(ValueError, match=r"train\.index\.json is not JSON"):
        open_split(folder, "train")
    index_path(folder, "train").write_text(json.dumps({"version": 1}))
    with pytest.raises(ValueError, match=r"train\.index\.json has no samples, shards; delete it"):
        open_split(folder, "train")
    index_path(folder, "train").write_text(json.dumps({"version": 0}))
    with pytest.raises(ValueError, match="version 0"):
        open_split(folder, "train")


@pytest.mark.parametrize("name", ["../out.json", "/abs.json"])
def test_unsafe_members_are_refused(tmp_path, name):
    with tarfile.open(shard_path(tmp_path, "train", 0), "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 2
        tar.addfile(member, io.BytesIO(b"{}"))
    with pytest.raises(ValueError, match=r"not a plain `key\.extension` member"):
        open_split(tmp_path, "train")


def pack(path, members):
    """Write a tar of (name, bytes); a name that ends with / is a directory."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


TEXT = json.dumps({"image_id": 7, "captions": ["a"], "caption_ids": [1]}).encode()


def test_members_of_no_sample_are_counted_and_keys_are_webdataset_s(tmp_path, photographs):
    """Such as `tar c ./set` writes on macOS."""
    image = encode_sample(photographs(1)[0]).members["jpg"]
    members = [("./", b""), ("./set/", b""), ("./set/._a.jpg", b"x"), ("./set/.DS_Store", b"x"), ("./set/README", b"x")]
    members += [("./set/a.JPG", image), ("./set/a.json", TEXT), ("__meta__", b"x"), ("__index__/b.jpg", b"x")]
    path = shard_path(tmp_path, "train", 0)
    pack(path, members)
    dataset = open_split(tmp_path, "train")
    # webdataset makes a sample "./set/" of a dot file in a folder.
    (theirs,) = (sample for sample in webdataset.WebDataset(str(path), shardshuffle=False) if "jpg" in sample)
    assert dataset[0].key == theirs["__key__"] == "./set/a" and dataset[0].image is not None
    assert dataset.skipped == {
        "directory in a shard": 2,
        "dot file in a shard": 2,
        "member of a shard without a key and an extension": 3,
    }


@pytest.mark.parametrize("again", ["a.json", "a.JSON"])
def test_a_member_that_a_shard_holds_twice_is_refused(tmp_path, again):
    pack(shard_path(tmp_path, "train", 0), [("a.json", TEXT), ("b.json", TEXT), (again, TEXT)])
    with pytest.raises(ValueError, match=rf"train-000000\.tar holds '{again}' twice"):
        open_split(tmp_path, "train")


@pytest.mark.parametrize("name", ["00000.tar", "train-000000.tar"])
def test_shards_of_img2dataset_are_refused_by_name(tmp_path, name):
    said = json.dumps({"caption": "a thing", "key": "000000000", "url": "http://x/a.jpg", "status": "success"}).encode()
    members = [("000000000.jpg", b"x"), ("000000000.txt", b"a thing"), ("000000000.json", said)]
    pack(tmp_path / name, members)
    with pytest.raises(ValueError, match=rf"{name} is of img2dataset, .*: group its samples by their url") as caught:
        open_split(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_a_link_in_a_tar_is_refused(tmp_path):
    with tarfile.open(shard_path(tmp_path, "train", 0), "w") as tar:
        member = tarfile.TarInfo("a.json")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(ValueError, match=r"not a plain `key\.extension` member"):
        open_split(tmp_path, "train")


def test_an_interrupted_writing_is_not_taken_for_a_whole_split(tmp_path, photographs):
    def breaking_off():
        yield from photographs(4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(breaking_off(), tmp_path, "train", samples_per_shard=2)
    assert shard_path(tmp_path, "train", 0).is_file()
    with pytest.raises(ValueError, match="interrupted; prepare them again"):
        open_split(tmp_path, "train")
    write_shards(photographs(4), tmp_path, "train", samples_per_shard=2)
    assert len(open_split(tmp_path, "train")) == 4


def test_an_audio_clip_without_samples_is_absent_and_counted(tmp_path, photographs):
    first, second = (encode_sample(sample) for sample in photographs(2, audio=True))
    silent = replace(first, members={**first.members, "flac": encode_audio(np.zeros(0), 16000, "flac")})
    write_shards([silent, second], tmp_path, "train")
    dataset = open_split(tmp_path, "train")
    assert dataset.has_audio == [False, True] and dataset.skipped == {"zero-length audio": 1}
    assert dataset[0].audio is None and dataset[1].audio is not None


def test_a_member_that_does_not_decode_is_absent_and_named_with_its_shard(tmp_path, photographs, caplog):
    first, second = (encode_sample(sample) for sample in photographs(2, audio=True))
    broken = replace(first, members={"jpg": first.members["jpg"][:200], "flac": b"fLaC" + bytes(100)})
    write_shards([broken, second], tmp_path, "train")
    dataset = open_split(tmp_path, "train")
    assert dataset[0].image is None and dataset[0].audio is None and dataset[1].image is not None
    assert dataset.skipped == {"unreadable audio": 1, "unreadable image": 1}
    for extension in ("jpg", "flac"):
        assert f"photo_000.{extension} in train-000000.tar does not decode" in caplog.text


def test_members_of_other_kinds_are_counted_and_the_first_image_is_read(tmp_path, photographs):
    sample = encode_sample(photographs(1)[0], "png")
    other = encode_sample(photographs(2)[1], "jpg")
    write_shards([replace(sample, members={**sample.members, **other.members})], tmp_path, "train")
    with tarfile.open(tmp_path / "train-000000.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("photo_000.m4a"))
    index_path(tmp_path, "train").unlink()
    dataset = open_split(tmp_path, "train")
    assert dataset.skipped == {"member of a kind that is not read (.m4a)": 1}
    assert list(dataset.encoded(0).members) == ["jpg"]


def test_empty_captions_are_counted_and_mismatched_ones_refused(tmp_path, photographs):
    first, second = (encode_sample(sample) for sample in photographs(2))
    write_shards([replace(first, captions=("  ", "a caption"), caption_ids=(7, 8)), second], tmp_path, "train")
    dataset = open_split(tmp_path, "train")
    assert dataset.skipped == {"empty caption": 1}
    assert dataset.captions[0] == dataset[0].captions == ("a caption",) and dataset.caption_ids[0] == (8,)
    with pytest.raises(ValueError, match="2 captions but 1 caption ids for image 100"):
        write_shards([replace(first, captions=("a", "b"), caption_ids=(1,))], tmp_path, "train")


def test_more_shards_than_may_be_open_at_once_are_read(tmp_path, photographs, monkeypatch):
    monkeypatch.setattr(shards, "OPEN_SHARDS", 2)
    write_shards(photographs(5), tmp_path, "train", samples_per_shard=1)
    dataset = open_split(tmp_path, "train")
    assert [dataset[i].image_id for i in (0, 1, 2, 3, 4, 0, 2)] == [100, 101, 102, 103, 104, 100, 102]
    assert len(dataset._files) == 2


@settings(max_examples=25, deadline=None)
@given(captions=st.lists(st.text().filter(str.strip), min_size=1, max_size=4))
def test_any_caption_survives(tmp_path_factory, captions):
    sample = EncodedSample("a", 1, tuple(captions), tuple(range(len(captions))), {})
    folder = tmp_path_factory.mktemp("shards")
    write_shards([sample], folder, "train")
    assert open_split(folder, "train")[0].captions == tuple(captions)
    index_path(folder, "train").unlink()
    assert open_split(folder, "train")[0].captions == tuple(captions)


def test_a_dataset_travels_to_another_process(folder):
    dataset = open_split(folder, "train")
    first = contents(dataset)
    assert contents(pickle.loads(pickle.dumps(dataset))) == first
