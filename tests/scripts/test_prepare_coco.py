"""The command from end to end, in this process: its arguments, what it says and its exit codes."""

import zipfile

import numpy as np
import pytest
import torch

from mm.batch import Sample
from mm.data import open_split
from mm.data.coco import write_coco
from mm.data.shard_index import read_index


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    samples = []
    for i in range(6):
        pixels = torch.from_numpy(rng.integers(0, 256, (3, 30, 50), dtype=np.uint8))
        samples.append(Sample(f"p{i}", i, (f"caption {i}",), (i,), pixels))
    write_coco(samples, tmp_path / "coco", "train")
    write_coco(samples[:2], tmp_path / "coco", "val")
    return tmp_path / "coco"


def test_a_folder_becomes_shards(script, capsys, root, tmp_path):
    (root / "images" / "p4.jpg").write_bytes(b"not an image")
    (root / "images" / "p5.jpg").unlink()
    arguments = ["--root", root, "--out", tmp_path / "out", "--size", 20, "--samples_per_shard", 2, "--workers", 2]
    script("prepare_coco.py", *arguments)
    out = capsys.readouterr().out
    assert "1 images are not on disk; going on without them" in out and "p5.jpg" in out
    assert "1 files cannot be read" in out and "p4.jpg does not decode" in out
    assert "train: 4 images with their captions" in out and "val: 2 images" in out
    assert "4 images were re-encoded as JPEG of quality 90, their short side at most 20 pixels" in " ".join(out.split())
    index = read_index(tmp_path / "out", "train")
    assert index["reencoded"] == 4 and index["settings"]["size"] == 20
    dataset = open_split(tmp_path / "out", "train")
    assert dataset.image_ids == [0, 1, 2, 3] and min(dataset[0].image.shape[1:]) == 20
    script("prepare_coco.py", *arguments)
    assert "3 shards kept from an earlier run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "nowhere"], "data folder nowhere does not exist"),
        (["--splits", "[test]"], "the splits there are train, val"),
        (["--size", "0"], "size=0: it must be a whole number in [1, inf)"),
        (["--sizes", "5"], "--sizes"),
        (["--side", "both"], "side"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(refused, root, tmp_path, arguments, message):
    assert message in refused("prepare_coco.py", "--root", root, "--out", tmp_path / "out", *arguments)


def test_download_fetches_and_unpacks_what_the_splits_need(script, capsys, root, tmp_path):
    mirror = tmp_path / "mirror"
    for name, folder, target in (
        ("zips/val2017", root / "images", "val2017"),
        ("annotations/annotations_trainval2017", root / "annotations", "annotations"),
    ):
        (mirror / name).parent.mkdir(parents=True)
        with zipfile.ZipFile(mirror / f"{name}.zip", "w") as file:
            for path in folder.iterdir():
                file.write(path, f"{target}/{path.name.replace('_val', '_val2017')}")
    arguments = ["--root", tmp_path / "new", "--out", tmp_path / "out", "--splits", "[val]"]
    script("prepare_coco.py", *arguments, "--download", "2017", "--mirror", mirror.as_uri())
    assert "val: 2 images" in capsys.readouterr().out
    assert open_split(tmp_path / "out", "val").captions == [("caption 0",), ("caption 1",)]
