"""The set of COCO's size, small: links of few files, captions that differ; a step is seen where its checkpoint is."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mm.bench import generated, scale
from mm.data import open_split


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "DIFFERENT", 3)
    monkeypatch.setattr(generated, "SIZE", (24, 32))
    monkeypatch.setattr(generated, "SCENES", 4)


def test_a_generated_set_has_as_many_images_and_captions_as_were_asked_for(few: None, tmp_path: Path) -> None:
    root = generated.generated_coco(tmp_path / "set", "train", 10, 53)
    folder = open_split(root, "train")
    shards = open_split(generated.generated_shards(tmp_path / "shards", root, "train"), "train")
    for dataset in (folder, shards):
        captions = [caption for several in dataset.captions for caption in several]
        assert len(dataset) == len(set(dataset.image_ids)) == 10 and len(captions) == len(set(captions)) == 53
        assert {len(several) for several in dataset.captions} == {5, 6} and not dataset.skipped
        sample = dataset[4]
        assert sample.image is not None and sample.image.shape == (3, 24, 32)
    files = {path.stat().st_ino for path in (root / "images").iterdir()}
    assert len(files) == 3
    assert np.array_equal(folder[1].image, folder[4].image) and not np.array_equal(folder[1].image, folder[2].image)


def test_a_set_is_made_once(few: None, tmp_path: Path) -> None:
    root = generated.generated_coco(tmp_path / "set", "train", 4, 20)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    generated.generated_coco(root, "train", 4, 20)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


STEPS = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1]) / "checkpoints"
folder.mkdir(parents=True, exist_ok=True)
done = len(list(folder.glob("*.ckpt")))
time.sleep(0.5)
(folder / f"epoch=0-step={done + 1}.ckpt").touch()
time.sleep(60)
"""


def test_a_run_is_killed_once_a_step_more_has_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STEPS, str(tmp_path)]
    for step in (1, 2):
        seconds, memory = scale.until_a_step(command, tmp_path)
        assert 0.5 <= seconds < 30 and 10**6 < memory < 10**9
        assert scale.newest_step(tmp_path) == step


def test_a_run_that_ends_by_itself_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended by itself"):
        scale.until_a_step([sys.executable, "-c", "pass"], tmp_path)


def test_memory_is_that_of_all_processes_of_a_run() -> None:
    child = "import time; x = b'1' * 60_000_000; print('there', flush=True); time.sleep(60)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"there\n"
        assert 60_000_000 < scale.memory_of(process.pid) < 200_000_000
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
