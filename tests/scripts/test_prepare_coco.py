"""The command from end to end, in this process: its arguments, what it says and its exit codes."""

import runpy
import sys
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mm.batch import Sample
from mm.data import open_split
from mm.data.coco import write_coco

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_coco.py"


@pytest.fixture
def run(monkeypatch, capsys):
    def command(*arguments):
        """(exit code, standard output, standard error)"""
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return command


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            f"p{i}", i, (f"caption {i}",), (i,), PIL.Image.fromarray(rng.integers(0, 256, (30, 50, 3), dtype=np.uint8))
        )
        for i in range(6)
    ]
    write_coco(samples, tmp_path / "coco", "train")
    write_coco(samples[:2], tmp_path / "coco", "val")
    return tmp_path / "coco"


def test_a_folder_becomes_shards(run, root, tmp_path):
    (root / "images" / "p4.jpg").write_bytes(b"not a picture")
    (root / "images" / "p5.jpg").unlink()
    arguments = ["--root", root, "--out", tmp_path / "out", "--size", 20, "--samples_per_shard", 2, "--workers", 2]
    code, out, _ = run(*arguments)
    assert code == 0
    assert "1 images are not on disk; going on without them" in out and "p5.jpg" in out
    assert "1 files cannot be read" in out and "p4.jpg does not decode" in out
    assert "train: 4 images with their captions" in out and "val: 2 images" in out
    dataset = open_split(tmp_path / "out", "train")
    assert dataset.image_ids == [0, 1, 2, 3] and min(dataset[0].image.size) == 20
    code, out, _ = run(*arguments)
    assert code == 0 and "3 shards kept from an earlier run" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "nowhere"], "data folder nowhere does not exist"),
        (["--splits", "[test]"], "the splits there are train, val"),
        (["--size", "0"], "must be positive"),
        (["--sizes", "5"], "--sizes"),
        (["--side", "both"], "side"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, root, tmp_path, arguments, message):
    code, _, err = run("--root", root, "--out", tmp_path / "out", *arguments)
    assert code == 2 and message in err and "Traceback" not in err


def test_download_fetches_and_unpacks_what_the_splits_need(run, root, tmp_path):
    mirror = tmp_path / "mirror"
    for name, folder, target in (
        ("zips/val2017", root / "images", "val2017"),
        ("annotations/annotations_trainval2017", root / "annotations", "annotations"),
    ):
        (mirror / name).parent.mkdir(parents=True)
        with zipfile.ZipFile(mirror / f"{name}.zip", "w") as file:
            for path in folder.iterdir():
                file.write(path, f"{target}/{path.name.replace('_val', '_val2017')}")
    code, out, err = run(
        "--root",
        tmp_path / "new",
        "--out",
        tmp_path / "out",
        "--splits",
        "[val]",
        "--download",
        "2017",
        "--mirror",
        mirror.as_uri(),
    )
    assert code == 0, err
    assert "val: 2 images" in out and open_split(tmp_path / "out", "val").captions == [("caption 0",), ("caption 1",)]
