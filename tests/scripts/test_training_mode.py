"""All four training scripts train in training mode from step 0, after a resume and after an evaluation."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule

from encoders import Encoder

SHORT = ["--train.steps", 4, "--train.checkpoint_every", 1, "--train.batch_size", 8, "--train.accelerator", "cpu"]


@dataclass
class Watched:
    """steps: the step and the modules in evaluation mode, where it begins. evaluated: encoders read without gradient,
    whether they were in training mode."""

    steps: list[tuple[int, set[str]]] = field(default_factory=list)
    evaluated: list[bool] = field(default_factory=list)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    found = Watched()
    forward = Encoder.forward

    def begins(task: LightningModule, *_: Any) -> None:
        still = {name for name, module in task.named_modules() if not module.training}
        found.steps.append((task.global_step, still))

    def reads(encoder: Encoder, *args: Any, **settings: Any) -> Any:
        if not torch.is_grad_enabled():
            found.evaluated.append(encoder.training)
        return forward(encoder, *args, **settings)

    monkeypatch.setattr(LightningModule, "on_train_batch_start", begins)
    monkeypatch.setattr(Encoder, "forward", reads)
    return found


@pytest.fixture
def on_the_set(script: Callable[..., None], sets: tuple[Path, Path], tmp_path: Path) -> Callable[..., None]:
    """on_the_set("train_align.py", *words) trains for four steps, a checkpoint after each."""

    def start(name: str, *words: object) -> None:
        own = ["--data.root", sets[1], "--runs", tmp_path, "--name", "watched"]
        script(name, *own, *SHORT, *words)

    return start


@pytest.fixture
def stopped(killed_at: Callable[[int, Callable[[], object]], None]) -> Callable[[Callable[[], object]], None]:
    """stopped(start) kills the run that `start` trains in its third step."""
    return lambda start: killed_at(2, start)


def align_words(frozen: bool) -> list[object]:
    """A small model with a trunk of timm, which its constructor leaves in evaluation mode."""
    trunk = ["--image.trunk", "timm/test_vit", "--image.weights", "none", "--image.frozen", frozen]
    text = ["--text.width", 16, "--text.depth", 1, "--text.heads", 2]
    backbone = ["--model.backbone.width", 32, "--model.backbone.layers", 1, "--model.backbone.heads", 2]
    return ["--model.modalities", "[image,text]", "--image.size", 32, *trunk, *text, *backbone, "--eval.rerank", 0]


@pytest.mark.parametrize("frozen", [False, True])
def test_an_aligned_run_trains_its_trunk_unless_it_is_frozen(
    on_the_set: Callable[..., None], watched: Watched, tmp_path: Path, frozen: bool
) -> None:
    cache = ["--data.cache", tmp_path / "cache"]
    on_the_set("train_align.py", *align_words(frozen), *cache, "--train.evaluate_every", 2)
    assert [step for step, _ in watched.steps] == [0, 1, 2, 3]
    for _, still in watched.steps:
        assert bool(still) == frozen and all(".trunk" in name for name in still)
    assert watched.evaluated and not any(watched.evaluated)


def test_a_resumed_run_trains_in_training_mode(
    on_the_set: Callable[..., None], watched: Watched, tmp_path: Path, stopped: Callable[..., None]
) -> None:
    words = [*align_words(False), "--data.cache", tmp_path / "cache"]
    stopped(lambda: on_the_set("train_align.py", *words))
    on_the_set("train_align.py", *words, "--resume", "true")
    assert watched.steps == [(2, set()), (3, set())]


def test_a_vqvae_trains_in_training_mode_and_is_evaluated_in_the_other(
    on_the_set: Callable[..., None], watched: Watched, tmp_path: Path
) -> None:
    words = ["--modality", "image", "--image.trunk", "timm/test_vit", "--image.weights", "none", "--image.size", 32]
    on_the_set("train_vqvae.py", *words)
    for checkpoint in (tmp_path / "watched" / "checkpoints").glob("*.ckpt"):
        if not checkpoint.is_symlink() and torch.load(checkpoint, weights_only=True)["global_step"] != 3:
            checkpoint.unlink()
    on_the_set("train_vqvae.py", *words, "--resume", "true")
    assert watched.steps == [(step, set()) for step in (0, 1, 2, 3, 3)]
    assert watched.evaluated and not any(watched.evaluated)


def test_continued_pretraining_trains_in_training_mode(
    on_the_set: Callable[..., None], watched: Watched, run: Path
) -> None:
    words = ["--run", run, "--train.evaluate_every", 2]
    on_the_set("continue_pretrain.py", *words)
    assert watched.steps == [(step, set()) for step in range(4)]
    assert watched.evaluated and not any(watched.evaluated)


def test_continued_pretraining_resumes_in_training_mode(
    on_the_set: Callable[..., None], watched: Watched, run: Path, stopped: Callable[..., None]
) -> None:
    stopped(lambda: on_the_set("continue_pretrain.py", "--run", run))
    on_the_set("continue_pretrain.py", "--run", run, "--resume", "true")
    assert watched.steps == [(2, set()), (3, set())]


def test_fine_tuning_all_weights_trains_in_training_mode(
    on_the_set: Callable[..., None], watched: Watched, run: Path
) -> None:
    words = ["--run", run, "--strategy", "full", "--general", "false", "--train.evaluate_every", 2]
    on_the_set("finetune.py", *words)
    assert watched.steps == [(step, set()) for step in range(4)]
    assert watched.evaluated and not any(watched.evaluated)


def test_of_an_adapted_run_the_dropout_of_the_adapters_trains_alone(
    on_the_set: Callable[..., None], watched: Watched, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("peft")
    words = ["--run", run, "--strategy", "lora", "--lora.rank", 4, "--general", "false", "--train.evaluate_every", 2]
    with caplog.at_level(logging.INFO, "mm.train.callbacks"):
        on_the_set("finetune.py", *words)
    assert [step for step, _ in watched.steps] == [0, 1, 2, 3]
    for _, still in watched.steps:
        assert "model" in still and not any("lora_dropout" in name for name in still)
    said = [record.getMessage() for record in caplog.records if record.name == "mm.train.callbacks"]
    assert len(said) == 1 and said[0].endswith("in evaluation mode stay: model")
