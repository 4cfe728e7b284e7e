"""Embeddings from a file, and the scripts that judge and compare them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eval.embeddings import Embeddings, judge_embeddings, judge_matching

ROOT = Path(__file__).parents[2]


def arrays(noise=1.0, images=40, seed=0):
    rng, shared = np.random.default_rng(seed), np.random.default_rng(99)
    centre = shared.standard_normal((images, 8))
    ids = np.arange(images) * 3
    return {"image": 4 * centre, "text": np.repeat(centre, 5, 0) + noise * rng.standard_normal((images * 5, 8)),
            "image_ids": ids, "caption_image_ids": np.repeat(ids, 5), "caption_ids": np.arange(images * 5)}


def script(name, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "COLUMNS": "160",
                                                                       "OMP_NUM_THREADS": "1", "PATH": ""})


def test_length_of_vectors_does_not_matter():
    found = arrays()
    longer = found | {"image": found["image"] * np.random.default_rng(1).uniform(0.1, 9, (40, 1))}
    a, b = (judge_embeddings(Embeddings.of(x), samples=10)["all"].metrics for x in (found, longer))
    assert a == b


def test_sounds_are_judged_on_the_items_that_have_one():
    found = arrays()
    found |= {"audio": found["image"][:10], "audio_image_ids": found["image_ids"][:10]}
    figures = judge_embeddings(Embeddings.of(found), samples=10)
    assert figures["image_audio"].metrics["image_to_audio/R@1"] == 100 and figures["image_audio"].protocol.images == 10
    assert figures["audio_text"].protocol.captions == 50


def test_matching_takes_its_threshold_from_the_validation_file():
    test, validation, easy = (Embeddings.of(arrays(noise, seed=s)) for noise, s in ((1.0, 0), (1.0, 1), (0.1, 2)))
    found = judge_matching(test, validation, retriever=easy, retriever_name="easy")
    assert found["random"].accuracy > found["hard"].accuracy > 50
    assert found["hard"].negatives == "top 20 of easy" and found["hard"].threshold == found["random"].threshold


@pytest.mark.parametrize("broken, message", [
    ({"image": np.full((40, 8), np.nan)}, "NaN"), ({"image": np.zeros((40, 8))}, "zero"),
    ({"image_ids": np.arange(39)}, "40 integers"), ({"text": np.ones((3, 8))}, "3 integers"),
])
def test_broken_arrays_are_refused(broken, message):
    with pytest.raises(ValueError, match=message):
        Embeddings.of(arrays() | broken)


def test_files_that_are_not_embeddings_are_refused_without_running_them(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "pickled.npz", image=np.array([{"a": 1}], dtype=object))
    for name in ("text.npz", "pickled.npz"):
        with pytest.raises(ValueError, match="plain arrays"):
            Embeddings.load(tmp_path / name)


def test_the_script_judges_a_file_and_writes_its_protocol(tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays())
    done = script("eval_coco.py", "--embeddings", tmp_path / "mine.npz", "--json", tmp_path / "out.json",
                  "--data.dataset", "toy", "--trained_on", "zero-shot")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["protocol"]["captions"] == 200 and result["protocol"]["trained_on"] == "zero-shot"
    low, high = result["intervals"]["image_to_text/R@1"]
    assert low <= result["metrics"]["image_to_text/R@1"] <= high and "200 captions" in done.stdout
    missing = script("eval_coco.py", "--embeddings", tmp_path / "nothing.npz")
    assert missing.returncode == 2 and len(missing.stderr.splitlines()) == 1 and "nothing.npz" in missing.stderr


def test_compare_tests_runs_on_the_same_items_and_refuses_others(tmp_path):
    stamp = {"dataset": "toy", "split": "val", "images": 40, "captions": 200, "captions_per_image": 5.0}
    for name, noise, captions in (("a", 1.5, 200), ("b", 0.5, 200), ("c", 0.5, 210)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "embeddings.npz", **arrays(noise))
        (tmp_path / name / "result.json").write_text(json.dumps({"protocol": {"val": stamp | {"captions": captions}}}))
    done = script("compare.py", tmp_path / "a", tmp_path / "b", "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["differences"]
    assert len(found) == 6 and all(row["difference"] >= 0 for row in found) and found[3]["p"] < 0.05
    refused = script("compare.py", tmp_path / "a", tmp_path / "c")
    assert refused.returncode == 2 and "captions: 200 != 210" in refused.stderr
