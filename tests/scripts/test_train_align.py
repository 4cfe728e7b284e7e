"""train_align as a user runs it: what a run leaves behind, what bad input says, and what a killed run goes on to."""

import csv
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from mm.artifacts.run import load_run
from mm.data.coco import write_coco
from mm.data.scenes import write_scenes
from mm.data.scenes.folder import sample_at
from mm.train.task import AlignTask

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_align.py"
SMALL = """
image: {size: 32, width: 16, depth: 1}
audio: {width: 16, depth: 1}
text: {width: 16, depth: 1, heads: 2}
bottleneck: {quantizer: {num_codes: 16, width: 8}, reconstruct: 2}
model:
  embedding: 16
  token_embedding: 8
  backbone: {width: 32, layers: 2, heads: 2, dropout: 0.1, moe: {num_experts: 8, top_k: 2, hidden: 8, shared: 16}}
loss: {filip_rows: 4, itm_rows: 4}
schedule: {kind: progressive, stage2: 0.1, stage3: 0.3}
train: {steps: 6, batch_size: 8, precision: fp32, accelerator: cpu, checkpoint_every: 2}
eval: {rerank: 2}
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", sizes={"train": 20, "val": 12}, image_size=32)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


def run_script(runs: Path, config: Path, root: Path, name: str, *flags: str) -> Path:
    """The script in this process, importing torch anew would be most of the time -> the run's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys,
            "argv",
            [
                str(SCRIPT),
                "--config",
                str(config),
                "--data.root",
                str(root),
                "--data.cache",
                str(runs / "cache"),
                "--runs",
                str(runs),
                "--name",
                name,
                *flags,
            ],
        )
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return runs / name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, config: Path, scenes: Path) -> Path:
    """A run through all three stages, logged once in each."""
    stages = ["--schedule.stage2", "0.4", "--schedule.stage3", "0.8"]
    return run_script(tmp_path_factory.mktemp("runs"), config, scenes, "finished", "--train.steps", "30", *stages)


@pytest.fixture
def train(config: Path, scenes: Path, tmp_path: Path) -> Callable[..., Path]:
    """train(*flags, name="small", root=scenes) -> the run's folder."""

    def run(*flags: str, name: str = "small", root: Path = scenes) -> Path:
        return run_script(tmp_path, config, root, name, *flags)

    return run


@pytest.fixture
def refusal(train: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refusal(*flags) -> the one line with which the script ends, exit code 2."""

    def run(*flags: str, **settings: Any) -> str:
        with pytest.raises(SystemExit) as stopped:
            train(*flags, **settings)
        assert stopped.value.code == 2
        shown = capsys.readouterr().err
        assert "Traceback" not in shown
        return shown.strip().splitlines()[-1]

    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def history(run: Path, figure: str = "train/total") -> dict[int, str]:
    rows = [r for r in csv.DictReader((run / "metrics.csv").open()) if r[figure]]
    found = {int(r["step"]): r[figure] for r in rows}
    assert len(found) == len(rows)
    return found


def test_a_run_leaves_everything_its_contract_names(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} >= {
        "config.yaml",
        "metrics.csv",
        "checkpoints",
        "model.safetensors",
        "model.json",
        "result.json",
        "embeddings.npz",
        "diagnostics.npz",
        "report.html",
    }
    result = json.loads((finished / "result.json").read_text())
    assert result.keys() >= {
        "metrics",
        "intervals",
        "protocol",
        "config",
        "commit",
        "seed",
        "hardware",
        "seconds",
        "parameters_total",
        "parameters_active",
    }
    phases = result["seconds_by_phase"]
    assert list(phases) == ["preparation", "training", "saving", "evaluation", "report"] and min(phases.values()) >= 0
    assert result["seconds"] == pytest.approx(sum(phases.values()) - phases["report"], abs=0.06)
    pairs = [("image", "text"), ("audio", "text"), ("image", "audio")]
    for direction in [f"{a}_to_{b}" for x, y in pairs for a, b in ((x, y), (y, x))]:
        recalls = [result["metrics"][f"{direction}/R@{k}"] for k in (1, 5, 10)]
        assert 0 <= recalls[0] <= recalls[1] <= recalls[2] <= 100
        assert (f"reranked/{direction}/R@1" in result["metrics"]) == ("audio" not in direction)
    assert result["metrics"]["chance/image_to_text/R@1"] == pytest.approx(100 / 12, abs=1e-3)
    protocol = result["protocol"]["val"]
    assert (protocol["images"], protocol["captions"], protocol["recall"]) == (12, 60, "any-hit")
    assert 0 < result["parameters_active"] < result["parameters_total"]


def test_the_arrays_of_a_run_fit_each_other(finished: Path) -> None:
    found = np.load(finished / "embeddings.npz")
    assert found["image"].shape == found["audio"].shape == (12, 16) and found["text"].shape == (60, 16)
    assert len(set(found["caption_ids"])) == 60 and set(found["caption_image_ids"]) == set(found["image_ids"])
    np.testing.assert_allclose(np.linalg.norm(found["text"], axis=1), 1, atol=1e-4)
    diagnostics = np.load(finished / "diagnostics.npz")
    for modality in ("image", "audio", "text"):
        counts, load = diagnostics[f"code_counts/{modality}"], diagnostics[f"expert_load/{modality}"]
        assert counts.shape == (1, 16) and load.shape == (2, 8)
        assert (load.sum(1) == 2 * counts.sum()).all()  # each token has one code and goes to 2 experts in either layer


def test_every_term_is_logged_from_the_stage_it_belongs_to(finished: Path) -> None:
    rows = [r for r in csv.DictReader((finished / "metrics.csv").open()) if r["train/total"]]
    terms = [{k.removeprefix("train/") for k, v in r.items() if k.startswith("train/") and v} for r in rows]
    first, second, third = terms
    assert [float(r["stage"]) for r in rows] == [1, 2, 3]
    assert {f"reconstruction/{m}" for m in ("image", "audio", "text")} | {"contrastive/image_text"} <= first
    assert second - first == {
        "code_match/image_text",
        "filip/image_text",
        "contrastive/audio_text",
        "code_match/audio_text",
        "filip/audio_text",
    }
    assert third - second == {
        "itm/image_text",
        "itm/audio_text",
        *(f"{t}/image_audio" for t in ("contrastive", "code_match", "filip", "itm")),
    }
    assert first < second < third


def test_the_saved_weights_load_and_behave_as_they_did(finished: Path) -> None:
    run = load_run(finished)
    stored = weights(finished)
    assert not run.model.training and run.state_dict().keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in run.state_dict().items())


def test_a_killed_run_goes_on_to_the_same_weights(
    train: Callable[..., Path], killed_at: Callable[[int, Callable[[], object]], None], tmp_path: Path
) -> None:
    """Dropout, drawn negatives, sampled positions, the moving average, and whatever the number of workers; and no
    logged row is lost or doubled."""
    flags = ["--train.steps", "14", "--eval.rerank", "0", "--train.ema", "0.8"]
    killed_at(11, lambda: train(*flags, name="killed"))
    kept = sorted(p.name for p in (tmp_path / "killed" / "checkpoints").glob("*.ckpt"))
    assert kept == ["epoch=0-step=10.ckpt", "epoch=0-step=8.ckpt", "last.ckpt"]
    other = ["--data.workers", "1"]
    resumed, whole = train(*flags, *other, "--resume", "true", name="killed"), train(*flags, name="whole")
    expected, found = weights(whole), weights(resumed)
    assert not [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert history(resumed) == history(whole) and list(history(whole)) == [9]


@pytest.fixture
def signalled(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """signalled(number, step, *flags, code=…) -> the one line with which a run ends that gets a signal in a step."""

    def run(number: int, step: int, *flags: str, code: int) -> str:
        seed_step = AlignTask.seed_step

        def signalling(task: AlignTask) -> None:
            seed_step(task)
            if task.global_step == step:
                os.kill(os.getpid(), number)

        before = signal.getsignal(number)
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
            patch.setattr(AlignTask, "seed_step", signalling)
            train(*flags)
        assert stopped.value.code == code and signal.getsignal(number) is before
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return run


def test_a_signal_keeps_the_step_and_says_how_to_go_on(
    signalled: Callable[..., str], train: Callable[..., Path], tmp_path: Path
) -> None:
    """SIGTERM, then Ctrl-C: the weights are those of a run that was left alone."""
    flags = ["--train.steps", "14", "--eval.rerank", "0", "--train.ema", "0.8"]
    line = signalled(signal.SIGTERM, 5, *flags, code=143)
    assert line.startswith("train_align: stopped by SIGTERM after step 6 of 14, which is kept; to go on: python ")
    assert line.endswith(" --resume true") and f"--runs {tmp_path}" in line
    kept = tmp_path / "small" / "checkpoints" / "stopped-step=6.ckpt"
    assert kept.is_file()
    line = signalled(signal.SIGINT, 9, *flags, "--resume", "true", code=130)
    assert "stopped by SIGINT after step 10 of 14" in line and line.count("--resume true") == 1
    resumed, whole = train(*flags, "--resume", "true"), train(*flags, name="whole")
    expected, found = weights(whole), weights(resumed)
    assert not [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert history(resumed) == history(whole) and not list(kept.parent.glob("stopped*"))


def test_a_resumed_run_takes_the_rate_that_is_asked_for(
    signalled: Callable[..., str], train: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--train.steps", "20", "--eval.rerank", "0"]
    caplog.set_level("INFO")
    signalled(signal.SIGTERM, 11, *flags, "--optim.learning_rate", "1e-3", code=143)
    whole = train(*flags, "--optim.learning_rate", "1e-3", name="whole")
    resumed = train(*flags, "--optim.learning_rate", "1e-4", "--resume", "true")
    assert "learning rate 0.0001 from step 12 on, 0.001 before" in caplog.messages
    before, after = history(whole, "learning_rate"), history(resumed, "learning_rate")
    assert after[9] == before[9] and float(after[19]) == pytest.approx(float(before[19]) / 10)


def test_a_finished_run_is_moved_aside_and_a_failed_start_leaves_it(
    train: Callable[..., Path], refusal: Callable[..., str], tmp_path: Path
) -> None:
    run = train("--eval.rerank", "0")
    content = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    refusal("--data.val", "nowhere")
    refusal("--seed", "3", "--resume", "true")
    assert content == {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    train("--eval.rerank", "0", "--seed", "3")
    (kept,) = tmp_path.glob("small.2*")
    assert content == {path.name: path.read_bytes() for path in kept.iterdir() if path.is_file()}


def test_a_seed_is_a_curve(train: Callable[..., Path]) -> None:
    """40 steps, logged to the last bit."""
    flags = [
        "--train.steps",
        "40",
        "--model.modalities",
        "[image,text]",
        "--eval.rerank",
        "0",
        "--data.train",
        "val",
        "--train.checkpoint_every",
        "40",
    ]
    first, second = (history(train(*flags, name=name)) for name in ("first", "second"))
    assert first == second and len(first) == 4


def test_gradient_checkpointing_ends_with_the_same_weights(train: Callable[..., Path]) -> None:
    flags = ["--train.steps", "4", "--eval.rerank", "0"]
    plain = weights(train(*flags, name="plain"))
    recomputed = weights(train(*flags, "--model.backbone.checkpoint", "true", name="recomputed"))
    assert not [name for name, value in plain.items() if not torch.equal(value, recomputed[name])]
    assert plain["backbone.blocks.0.moe.router.bias"].any()


def test_a_run_killed_in_its_evaluation_is_evaluated_and_not_trained_again(
    train: Callable[..., Path], refusal: Callable[..., str]
) -> None:
    flags = ["--train.steps", "12", "--eval.rerank", "0"]
    run = train(*flags)
    before, logged = weights(run), history(run)
    (run / "result.json").unlink()
    train(*flags, "--resume", "true")
    assert (run / "result.json").is_file() and history(run) == logged and list(logged) == [9]
    assert all(torch.equal(value, before[name]) for name, value in weights(run).items())
    assert "train.steps=12, not 14" in refusal("--train.steps", "14", "--eval.rerank", "0", "--resume", "true")


def test_a_moving_average_leaves_a_frozen_trunk_alone(train: Callable[..., Path], tmp_path: Path) -> None:
    """To the bit: its features are cached by its weights."""
    file = tmp_path / "trunk.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), file)
    flags = ["--image.trunk", "timm/test_vit", "--image.weights", str(file), "--image.frozen", "true"]
    flags += ["--eval.rerank", "0"]
    plain, averaged = (weights(train(*flags, "--train.ema", ema, name=f"ema{ema}")) for ema in ("0", "0.9"))
    trunk = [name for name in plain if "image.trunk" in name]
    assert trunk and all(torch.equal(plain[name], averaged[name]) for name in trunk)
    assert not torch.equal(plain["pool.text.score.weight"], averaged["pool.text.score.weight"])


def photographs(folder: Path) -> Path:
    """The same scenes in COCO layout."""
    for split, size in (("train", 16), ("val", 4)):
        write_coco((sample_at(0, split, i, 32) for i in range(size)), folder, split)
    return folder


def test_settings_nobody_knows_are_named(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert "steeps" in refusal("--train.steeps", "3")
    assert "many" in refusal("--train.steps", "many")
    (tmp_path / "typo.yaml").write_text("modle: {embedding: 3}")
    assert "modle" in refusal("--config", str(tmp_path / "typo.yaml"))


def test_data_that_is_not_there_is_named(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refusal(root=tmp_path / "nowhere")
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    assert "captions_train.json" in refusal(root=tmp_path / "coco")


@pytest.mark.parametrize(
    "option, value",
    [
        ("--train.steps", "0"),
        ("--train.steps", "-1"),
        ("--eval.batch_size", "0"),
        ("--train.checkpoint_every", "0"),
    ],
)
def test_numbers_that_no_run_can_have_are_named(refusal: Callable[..., str], option: str, value: str) -> None:
    assert refusal(option, value) == f"train_align: {option[2:]}={value}: it must be a whole number in [1, inf)"


@pytest.mark.parametrize(
    "option, value",
    [
        ("--data.views", "0"),
        ("--data.captions", "0"),
        ("--audio.seconds", "0"),
        ("--text.max_tokens", "0"),
        ("--optim.learning_rate", "-1"),
    ],
)
def test_settings_outside_of_their_range_are_named(refusal: Callable[..., str], option: str, value: str) -> None:
    assert option[2:] in refusal(option, value)


def test_an_accelerator_that_is_not_there_is_one_line(refusal: Callable[..., str]) -> None:
    assert "train.accelerator" in refusal("--train.accelerator", "tpu")


def test_one_modality_cannot_be_aligned(refusal: Callable[..., str]) -> None:
    assert "two must be in both" in refusal("--model.modalities", "[image]")


def test_a_batch_larger_than_the_split_is_refused(refusal: Callable[..., str]) -> None:
    assert "batch of 21" in (line := refusal("--train.batch_size", "21")) and "20 images" in line


def test_a_set_of_which_most_pictures_do_not_decode_is_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    root = photographs(tmp_path / "coco")
    broken = sorted((root / "images").glob("train*"))[:12]
    for path in broken:
        path.write_bytes(b"no picture at all" * 100)
    line = refusal("--train.batch_size", "16", root=root)
    assert "image files that were tried do not decode" in line and broken[0].name in line


def test_a_step_that_breaks_names_the_term(refusal: Callable[..., str]) -> None:
    line = refusal("--optim.learning_rate", "1e30", "--optim.clip", "0")
    assert line.startswith("train_align: step ") and "contrastive/image_text" in line and "not finite" in line


def test_a_resume_without_a_checkpoint_is_refused(refusal: Callable[..., str]) -> None:
    assert "holds no run" in refusal("--resume", "true")


def test_an_option_of_an_older_version_is_one_line_with_its_new_name(refusal: Callable[..., str]) -> None:
    for old, new in (
        ("--loss.fine", "is now --loss.filip;"),
        ("--image.bottleneck.quantizer.codes", "is now --bottleneck.quantizer.num_codes;"),
        ("--model.backbone.moe.active", "is now --model.backbone.moe.top_k;"),
        ("--image.learning_rate_factor", "is now --optim.rates"),
        ("--schedule.ramp", "is no option any more"),
    ):
        assert f"{old} {new}" in refusal(old, "1")


def test_a_config_file_of_an_older_version_is_read(train: Callable[..., Path], tmp_path: Path) -> None:
    older = SMALL.replace("num_experts", "experts").replace("top_k", "active").replace("itm_rows", "match_rows")
    (tmp_path / "older.yaml").write_text(older)
    train("--config", str(tmp_path / "older.yaml"), "--train.steps", "1", "--eval.rerank", "0")
