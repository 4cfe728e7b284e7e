"""eval_coco as a user runs it: a run, an open_clip model, a file, under a stated protocol; mistakes in one line."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from eval.figures import split_figures
from eval.ground_truth import GroundTruth
from eval.protocols import Protocol
from eval.sugar_crepe import SUGAR_CREPE
from mm.artifacts.run import build_run, save_run
from mm.config import AlignConfig, encoders_of, plan_of
from mm.data.media import encode_audio
from mm.data.module import AlignData
from mm.data.scenes import write_scenes

BENCHMARKS = Path(__file__).parents[2] / "../shared/data/coco_benchmarks"
CLASSES = {"red_circle": (255, 0, 0), "blue_circle": (0, 0, 255)}


def arrays(noise: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    centre, ids = np.random.default_rng(99).standard_normal((40, 8)), np.arange(40) * 3
    text = np.repeat(centre, 5, 0) + noise * np.random.default_rng(seed).standard_normal((200, 8))
    return {
        "image": centre,
        "text": text,
        "image_ids": ids,
        "caption_image_ids": np.repeat(ids, 5),
        "caption_ids": np.arange(200),
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.savez(tmp_path / "mine.npz", **arrays())  # type: ignore[arg-type]  # numpy types its keywords as bool
    return tmp_path / "mine.npz"


def write_run(folder: Path, tiny: AlignConfig, frozen: bool = False) -> Path:
    """An untrained run on 20 scenes, with splits of 9 and 7; the features of frozen trunks are cached."""
    root = write_scenes(folder / "scenes", sizes={"train": 20, "val": 9, "test": 7}, image_size=32)
    data = replace(tiny.data, root=str(root), cache=str(folder / "cache"))
    text = replace(tiny.text, max_tokens=24, frozen=frozen)
    config = replace(tiny, data=data, text=text, image=replace(tiny.image, frozen=frozen))
    read = AlignData(config.data, encoders_of(config), plan_of(config), config.train.precision)
    read.setup()
    torch.manual_seed(0)
    save_run(build_run(config, read.vocabulary), folder / "run")
    return folder / "run"


@pytest.fixture
def run(tiny: AlignConfig, tmp_path: Path) -> Path:
    return write_run(tmp_path, tiny)


@pytest.fixture
def evaluate(script: Callable[..., None], tmp_path: Path) -> Callable[..., dict]:
    """evaluate(*words) -> the result of eval_coco."""

    def evaluated(*words: object) -> dict:
        script("eval_coco.py", *words, "--samples", "20", "--json", tmp_path / "out" / "result.json")
        return json.loads((tmp_path / "out" / "result.json").read_text())

    return evaluated


def protocols(result: dict) -> dict[str, Protocol]:
    return {name: figures.protocol for name, figures in split_figures(result).items()}


@pytest.fixture
def crepe(tmp_path: Path) -> tuple[Path, Path]:
    """(SugarCrepe's files, whose last item has no image; the folder of val2017/), with names like the real ones."""
    folder, images = tmp_path / "crepe", tmp_path / "coco" / "val2017"
    folder.mkdir()
    images.mkdir(parents=True)
    for index, split in enumerate(SUGAR_CREPE):
        names = [f"{index % 3 + 1:012d}.jpg", f"{index % 3 + 2:012d}.jpg", "000000999999.jpg"]
        texts = {"caption": f"a red square {index}", "negative_caption": f"a blue dot {index}"}
        rows = {str(i): {"filename": name, **texts} for i, name in enumerate(names)}
        (folder / f"{split}.json").write_text(json.dumps(rows))
    for number in range(1, 5):
        Image.new("RGB", (40, 30), (60 * number, 0, 0)).save(images / f"{number:012d}.jpg")
    return folder, images.parent


def classes_of(folder: Path, audio: bool = False) -> Path:
    """Three files for each of two classes."""
    for pitch, (name, colour) in enumerate(CLASSES.items(), 1):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            if audio:
                wave = np.sin(np.arange(4000) * 0.1 * pitch).astype(np.float32)
                (folder / name / f"{i}.wav").write_bytes(encode_audio(wave, 16000, "wav"))
            else:
                Image.new("RGB", (32, 32), colour).save(folder / name / f"{i}.png")
    return folder


def test_a_file_is_evaluated_and_says_its_protocol(
    evaluate: Callable[..., dict], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate("--embeddings", file, "--data.dataset", "toy", "--trained_on", "zero-shot")
    assert list(result["protocol"]) == ["all"]
    protocol = protocols(result)["all"]
    assert (protocol.dataset, protocol.captions) == ("toy", 200)
    assert (protocol.trained_on, protocol.rerank_depth) == ("zero-shot", 0)
    low, high = result["intervals"]["image_to_text/R@1"]
    assert low <= result["metrics"]["image_to_text/R@1"] <= high and "200 captions" in capsys.readouterr().out
    assert result["evaluated"] == str(file) and {"seed", "seconds", "commit", "hardware"} <= result.keys()
    assert f"<h1>{file} on toy/unstated</h1>" in (file.parent / "out" / "result.html").read_text()


def test_a_file_that_nobody_names_is_unstated(evaluate: Callable[..., dict], file: Path) -> None:
    protocol = protocols(evaluate("--embeddings", file))["all"]
    assert (protocol.dataset, protocol.split, protocol.trained_on) == ("unstated", "unstated", "unstated")


def test_a_run_is_evaluated_in_another_precision_under_another_name(
    evaluate: Callable[..., dict], refused: Callable[..., str], run: Path, file: Path
) -> None:
    words = ("--run", run, "--data.split", "test", "--rerank", "0")
    result = evaluate(*words, "--precision", "bf16")
    assert result["config"]["train"]["precision"] == "bf16"
    evaluate(*words)
    kept = [np.load(run / f"eval-scenes-test{name}.npz")["image"] for name in ("", "-bf16")]
    assert 1e-5 < np.abs(kept[0] - kept[1]).max() < 0.1
    assert "--precision is for a run" in refused("eval_coco.py", "--embeddings", file, "--precision", "fp32")


def test_embeddings_of_a_run_have_its_own_protocol(
    evaluate: Callable[..., dict], refused: Callable[..., str], run: Path, file: Path
) -> None:
    evaluate("--run", run, "--data.split", "test")
    kept = run / "eval-scenes-test.npz"
    assert 'id="code-maps"' in kept.with_suffix(".html").read_text()
    protocol = protocols(evaluate("--embeddings", kept))["all"]
    assert (protocol.dataset, protocol.split, protocol.images) == ("scenes", "test", 7)
    assert protocol.trained_on == "trained on scenes/train"
    shutil.copy(kept, run / "embeddings.npz")
    shutil.copy(kept.with_suffix(".json"), run / "result.json")
    for words in ([run], [run / "embeddings.npz"]):
        assert protocols(evaluate("--embeddings", *words))["all"] == protocol
        assert "beside" in refused("eval_coco.py", "--embeddings", *words, "--data.dataset", "coco")
    shutil.copy(file, run / "embeddings.npz")
    assert "result.json is of 7 images" in refused("eval_coco.py", "--embeddings", run)


def test_a_training_split_is_said_to_be_seen(evaluate: Callable[..., dict], run: Path) -> None:
    for protocol in protocols(evaluate("--run", run, "--data.split", "train")).values():
        assert protocol.trained_on == "trained on scenes/train, which has captions of 20 of these images"


def test_options_without_effect_are_one_line(
    refused: Callable[..., str], file: Path, run: Path, crepe: tuple[Path, Path]
) -> None:
    mine, its = ("eval_coco.py", "--embeddings", file), ("eval_coco.py", "--run", run)
    peer = ("eval_coco.py", "--open_clip", "ViT-B-32", "--data.root", run.parent / "scenes")
    edits = ("--sugar_crepe", crepe[0], "--data.root", crepe[1])
    for words in (
        (*its, "--data.karpathy", file),
        (*its, "--data.audio_root", run),
        (*its, "--data.dataset", "x"),
        (*peer, "--data.audio_root", run),
        (*peer, "--trained_on", "zero-shot"),
        (*mine, "--data.retriever_name", "x"),
        (*its, *edits, "--data.split", "val"),
        (*its, *edits, "--data.validation", "val"),
        (*its, *edits, "--data.karpathy", file),
        (*its, "--classes", run, "--data.root", run),
    ):
        line = refused(*words)
        option = next(word for word in reversed(words) if str(word).startswith("--"))
        assert str(option) in line


def test_matching_of_a_file_needs_a_validation_file_and_names_the_frozen_retriever(
    evaluate: Callable[..., dict], file: Path, tmp_path: Path
) -> None:
    (tmp_path / "minilm").mkdir()
    np.savez(tmp_path / "minilm" / "embeddings.npz", **arrays(0.1, seed=2))  # type: ignore[arg-type]
    np.savez(tmp_path / "dev.npz", **arrays(seed=1))  # type: ignore[arg-type]
    files = ("--data.validation", tmp_path / "dev.npz", "--data.retriever", tmp_path / "minilm")
    found = evaluate("--embeddings", file, *files)
    random, hard = (split_figures(found)[f"matching/{kind}/cosine"] for kind in ("random", "hard"))
    assert random.metrics["accuracy"] > hard.metrics["accuracy"] > 50
    assert "top 20 of minilm" in hard.protocol.task and "fixed on dev" in hard.protocol.task
    assert {"accuracy", "auc", "forced_choice", "calibration_error"} == hard.intervals.keys()
    assert random.metrics["threshold"] == hard.metrics["threshold"]


def test_the_ground_truth_folder_adds_cxc_and_eccv_and_the_thousand_protocol(
    evaluate: Callable[..., dict], refused: Callable[..., str], file: Path, tmp_path: Path
) -> None:
    if not BENCHMARKS.is_dir():
        pytest.skip("needs ../shared/data/coco_benchmarks")
    truth = GroundTruth.load(BENCHMARKS)
    images, rng = np.unique(truth.images), np.random.default_rng(0)
    centre = rng.standard_normal((len(images), 4))
    text = centre[np.searchsorted(images, truth.images)] + 0.1 * rng.standard_normal((len(truth.images), 4))
    np.savez(
        tmp_path / "test.npz",
        image=centre,
        text=text,
        image_ids=images,
        caption_image_ids=truth.images,
        caption_ids=truth.captions,
    )
    found = evaluate(
        "--embeddings", tmp_path / "test.npz", "--data.ground_truth", BENCHMARKS, "--data.validation", file
    )
    figures = split_figures(found)
    assert figures.keys() == {"all", "folds", "cxc", "eccv", "matching/random/cosine"}
    assert all(each.protocol.split == "karpathy-test" for each in figures.values())
    assert {"image_to_text/map_at_r", "text_to_image/r_precision"} <= figures["eccv"].metrics.keys()
    assert "text_to_image/R@10" in figures["cxc"].metrics and figures["folds"].protocol.images == 1000
    assert figures["matching/random/cosine"].protocol.ground_truth == "original+cxc+eccv"
    assert "other images" in refused("eval_coco.py", "--embeddings", file, "--data.ground_truth", BENCHMARKS)
    assert "coco_test_ids" in refused("eval_coco.py", "--embeddings", file, "--data.ground_truth", tmp_path)


SCRATCH = "image: from scratch; audio: from scratch; text: from scratch"


def test_a_run_is_evaluated_by_its_vectors_and_by_its_match_head(evaluate: Callable[..., dict], run: Path) -> None:
    found = evaluate("--run", run, "--data.split", "test", "--data.validation", "val", "--rerank", 3)
    figures = split_figures(found)
    protocol = figures["test"].protocol
    assert (protocol.images, protocol.rerank_depth, protocol.zero_shot) == (7, 3, False)
    assert "reranked/image_to_text/R@1" in found["metrics"] and "config" in found
    assert list(figures) == [
        "test",
        "all",
        "audio_text",
        "image_audio",
        "matching/random/cosine",
        "matching/random/match head",
    ]
    for name, each in figures.items():
        assert each.protocol.trained_on == "trained on scenes/train", name
        assert each.protocol.name == "scenes/test", name
        assert each.protocol.pretraining == SCRATCH, name
    vectors = figures["all"].metrics
    assert vectors["image_to_text/R@5"] == pytest.approx(found["metrics"]["image_to_text/R@5"], abs=1e-2)
    head = figures["matching/random/match head"]
    assert head.metrics["threshold"] != figures["matching/random/cosine"].metrics["threshold"]
    kept = run / "eval-scenes-test.json"
    assert json.loads(kept.read_text()) == found and np.load(kept.with_suffix(".npz"))["image"].shape == (7, 16)


def test_a_set_of_the_same_name_is_zero_shot_and_samples_and_seed_reach_the_run_s_own_table(
    evaluate: Callable[..., dict], run: Path, tmp_path: Path
) -> None:
    other = write_scenes(tmp_path / "other" / "scenes", seed=1, sizes={"test": 9}, image_size=32)
    asked = ("--run", run, "--data.root", other, "--data.split", "test", "--rerank", 0)
    found, again = evaluate(*asked), evaluate(*asked, "--seed", 1)
    stated = protocols(found)
    assert stated["test"].name == "scenes/test" and stated["test"].zero_shot
    assert stated["all"].trained_on == stated["test"].trained_on == "zero-shot, trained on scenes/train"
    assert str(tmp_path) not in json.dumps(found["protocol"])
    assert found["metrics"] == again["metrics"] and found["intervals"] != again["intervals"]


def test_a_run_s_negatives_can_be_another_model_s(evaluate: Callable[..., dict], run: Path) -> None:
    evaluate("--run", run, "--data.split", "test", "--rerank", 0)
    found = evaluate(
        "--run",
        run,
        "--data.split",
        "test",
        "--data.validation",
        "val",
        "--rerank",
        0,
        "--data.retriever",
        run / "eval-scenes-test.npz",
        "--data.retriever_name",
        "itself",
    )
    assert "top 7 of itself" in protocols(found)["matching/hard/match head"].task


def test_sugar_crepe_of_a_run_counts_what_is_missing(
    evaluate: Callable[..., dict], run: Path, crepe: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    found = evaluate("--run", run, "--sugar_crepe", crepe[0], "--data.root", crepe[1])
    assert list(found["protocol"]) == ["cosine", "match head"]
    for figures in split_figures(found).values():
        assert figures.metrics.keys() == {*SUGAR_CREPE, "mean"} == figures.intervals.keys()
        assert figures.metrics["mean"] == pytest.approx(np.mean([figures.metrics[s] for s in SUGAR_CREPE]))
        assert (figures.protocol.images, figures.protocol.skipped) == (4, {"image is missing": 7})
        assert figures.protocol.trained_on == "trained on scenes/train" and figures.protocol.pretraining == SCRATCH
    assert "1 of 5 images are missing" in caplog.text and "7 items are skipped" in caplog.text
    assert (run / "eval-sugar_crepe-val2017.json").is_file()


def test_sugar_crepe_s_own_files_with_a_handful_of_images(
    evaluate: Callable[..., dict], run: Path, tmp_path: Path
) -> None:
    if not BENCHMARKS.is_dir():
        pytest.skip("needs ../shared/data/coco_benchmarks")
    total = 0
    for split in SUGAR_CREPE:
        items = json.loads((BENCHMARKS / "sugar_crepe" / f"{split}.json").read_text())
        total += len(items)
        Image.new("RGB", (64, 48), (200, 100, 0)).save(tmp_path / items["0"]["filename"])
    found = evaluate("--run", run, "--sugar_crepe", BENCHMARKS / "sugar_crepe", "--data.root", tmp_path)
    figures = split_figures(found)["cosine"]
    assert figures.metrics.keys() == {*SUGAR_CREPE, "mean"} and 1 <= figures.protocol.images <= 7
    assert figures.protocol.captions / 2 + figures.protocol.skipped["image is missing"] == total == 7511


@pytest.mark.parametrize("audio", [False, True])
def test_classes_are_told_by_their_prompts(
    evaluate: Callable[..., dict], run: Path, tmp_path: Path, audio: bool
) -> None:
    found = evaluate("--run", run, "--classes", classes_of(tmp_path / "shapes", audio))
    protocol = protocols(found)["classes"]
    assert found["metrics"].keys() == {"top-1 accuracy"} and protocol.images == 6
    assert f"{'audio clips' if audio else 'images'} among 2 classes, 3 prompts each" in protocol.task


def test_frozen_trunks_run_once_for_each_benchmark(
    evaluate: Callable[..., dict], tiny: AlignConfig, crepe: tuple[Path, Path], tmp_path: Path
) -> None:
    run, shapes = write_run(tmp_path / "frozen", tiny, frozen=True), classes_of(tmp_path / "shapes")
    for _ in range(2):
        assert (
            evaluate("--run", run, "--sugar_crepe", crepe[0], "--data.root", crepe[1])["protocol"]["cosine"]["images"]
            == 4
        )
        assert protocols(evaluate("--run", run, "--classes", shapes))["classes"].images == 6
        evaluate("--run", run, "--data.split", "test", "--data.validation", "val")
    kept = [path.name.split("-")[:2] for path in (tmp_path / "frozen" / "cache" / "features").iterdir()]
    assert sorted(kept) == [[m, name] for m in ("image", "text") for name in ("classes", "sugar_crepe", "test", "val")]


def test_an_open_clip_model_is_evaluated_alike(
    evaluate: Callable[..., dict],
    run: Path,
    crepe: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        open_clip.factory,
        "_MODEL_CONFIGS",
        open_clip.factory._MODEL_CONFIGS
        | {
            "toy": {
                "embed_dim": 8,
                "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
                "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
            }
        },
    )
    model = ("--open_clip", "toy")
    split = evaluate(*model, "--data.root", run.parent / "scenes", "--data.split", "test", "--data.validation", "val")
    assert list(split["protocol"]) == ["all", "matching/random/cosine"] and split["protocol"]["all"]["images"] == 7
    assert {each.trained_on for each in protocols(split).values()} == {"RANDOM WEIGHTS"}
    assert split["evaluated"] == "toy with RANDOM WEIGHTS" and "RANDOM WEIGHTS" in capsys.readouterr().out
    edits = evaluate(*model, "--sugar_crepe", crepe[0], "--data.root", crepe[1])
    assert {name: each.trained_on for name, each in protocols(edits).items()} == {"cosine": "RANDOM WEIGHTS"}
    classes = protocols(evaluate(*model, "--classes", classes_of(tmp_path / "shapes")))["classes"]
    assert classes.images == 6 and classes.pretraining == "image and text: open_clip/toy, not stated"


def test_options_that_do_not_fit_are_one_line(
    refused: Callable[..., str], file: Path, run: Path, crepe: tuple[Path, Path]
) -> None:
    mine, its = ("eval_coco.py", "--embeddings", file), ("eval_coco.py", "--run", run)
    assert "name one of" in refused("eval_coco.py") and "name one of" in refused(*mine, "--run", run)
    assert "need a model" in refused(*mine, "--sugar_crepe", crepe[0])
    assert "need a model" in refused(*mine, "--classes", run)
    assert "--data.root" in refused(*its, "--sugar_crepe", crepe[0])
    assert "none of SugarCrepe's 5 images" in refused(*its, "--sugar_crepe", crepe[0], "--data.root", run)
    assert "says itself" in refused(*its, "--trained_on", "zero-shot") and "for a run" in refused(*mine, "--rerank", 3)
    assert "--data.spilt" in refused(*mine, "--data.spilt", "x") and "samples" in refused(*mine, "--samples", "many")
    assert "samples=0: it must be a whole number in [1, inf)" in refused(*mine, "--samples", 0)
    assert "another split" in refused(*mine, "--data.validation", file)
    assert "another split" in refused(*its, "--data.split", "test", "--data.validation", "test")
    assert "data.validation" in refused(*mine, "--data.retriever", file)
    assert "no finished run" in refused("eval_coco.py", "--run", run.parent)
    assert "at least two folders" in refused(*its, "--classes", run)
    assert "taken for the protocol" in refused(*its, "--data.split", "all")


def test_embeddings_that_do_not_fit_are_one_line_with_their_name(refused: Callable[..., str], tmp_path: Path) -> None:
    broken: dict[str, dict[str, np.ndarray]] = {
        "lack image_ids": {k: v for k, v in arrays().items() if k != "image_ids"},
        "NaN": arrays() | {"text": np.full((200, 8), np.nan)},
        "40 integers": arrays() | {"image_ids": np.arange(3)},
        "no id in common": arrays() | {"caption_image_ids": np.full(200, 1)},
    }
    for message, found in broken.items():
        np.savez(tmp_path / "broken.npz", **found)  # type: ignore[arg-type]
        line = refused("eval_coco.py", "--embeddings", tmp_path / "broken.npz")
        assert message in line and "broken.npz" in line
    assert "nothing.npz" in refused("eval_coco.py", "--embeddings", tmp_path / "nothing.npz")
    assert "embeddings.npz: no such file" in refused("eval_coco.py", "--embeddings", tmp_path)
