"""Scenes on disk: both layouts give the samples back; writing is atomic and repeated only when the recipe changes."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from mm.data import open_split
from mm.data.scenes import Layout, ensure_scenes, folder, sample_at, write_scenes

SIZES = {"train": 4, "val": 3}


@pytest.mark.parametrize("layout", ["shards", "coco"])
def test_what_is_written_is_read_back(tmp_path: Path, layout: Layout) -> None:
    root = write_scenes(tmp_path / "scenes", seed=5, sizes=SIZES, image_size=32, layout=layout)
    for split, size in SIZES.items():
        dataset = open_split(root, split)
        assert len(dataset) == size and dataset.modalities == {"image", "audio", "text"} and not dataset.skipped
        for index in range(size):
            read, made = dataset[index], sample_at(5, split, index, 32)
            assert read.key == made.key and read.image_id == made.image_id
            assert read.captions == made.captions and read.caption_ids == made.caption_ids
            assert (np.asarray(read.image) == np.asarray(made.image)).all()
            assert read.audio is not None and made.audio is not None and read.sample_rate == made.sample_rate
            np.testing.assert_allclose(read.audio, made.audio, atol=1 / 2**15)


def test_ids_are_unique_over_the_splits() -> None:
    samples = [sample_at(0, split, index) for split in ("train", "val", "seen", "test") for index in range(3)]
    assert len({s.image_id for s in samples}) == len({s.key for s in samples}) == 12
    assert len({i for s in samples for i in s.caption_ids}) == 60


def test_written_scenes_are_left_alone_until_the_recipe_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ensure_scenes(tmp_path / "scenes", sizes=SIZES)
    before = {path: path.stat().st_mtime_ns for path in root.iterdir()}
    ensure_scenes(root, sizes=SIZES)
    assert {path: path.stat().st_mtime_ns for path in root.iterdir()} == before
    ensure_scenes(root, sizes={"val": 5})
    assert len(open_split(root, "val")) == 5 and not list(root.glob("train*"))
    first = open_split(root, "val")[0].captions
    ensure_scenes(root, sizes={"val": 5}, seed=1)
    assert open_split(root, "val")[0].captions != first
    monkeypatch.setattr(folder, "VERSION", folder.VERSION + 1)
    written = (root / "scenes.json").stat().st_mtime_ns
    ensure_scenes(root, sizes={"val": 5}, seed=1)
    assert (root / "scenes.json").stat().st_mtime_ns != written


def test_an_interrupted_writing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ensure_scenes(tmp_path / "scenes", sizes={"val": 3})
    before = {path.name: path.read_bytes() for path in root.iterdir()}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "sample_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_scenes(root, sizes={"val": 6})
    assert {path.name: path.read_bytes() for path in root.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"scenes", ".scenes.lock"}


def test_leftovers_of_a_killed_process_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".scenes.partial").mkdir()
    (tmp_path / ".scenes.partial" / "val-000000.tar").write_bytes(b"half")
    root = ensure_scenes(tmp_path / "scenes", sizes={"val": 3})
    assert len(open_split(root, "val")) == 3 and not (tmp_path / ".scenes.partial").exists()


def test_processes_that_ask_at_the_same_time_get_the_same_scenes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=ensure_scenes, args=(tmp_path / "scenes",), kwargs={"sizes": {"val": 20}})
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(open_split(tmp_path / "scenes", "val")) == 20


def test_a_folder_with_other_things_in_it_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(ValueError, match="was not written by prepare_scenes"):
        ensure_scenes(tmp_path / "photos", sizes={"val": 3})
    assert (tmp_path / "photos" / "holiday.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sizes": {"dev": 3}}, "unknown split 'dev'"),
        ({"sizes": {"val": 0}}, "'val' cannot have 0 scenes"),
        ({"sizes": {"val": 10**7}}, "cannot have 10000000 scenes"),
        ({"sizes": {}}, "no split to write"),
        ({"sizes": {"val": 3}, "layout": "zip"}, "unknown layout 'zip'"),
        ({"sizes": {"val": 3}, "seed": -1}, "must not be negative"),
        ({"sizes": {"val": 3}, "image_size": 4}, "4 pixels is too small"),
    ],
)
def test_an_impossible_recipe_is_refused_in_one_line(tmp_path: Path, wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ensure_scenes(tmp_path / "scenes", **wrong)
    assert not (tmp_path / "scenes").exists()
