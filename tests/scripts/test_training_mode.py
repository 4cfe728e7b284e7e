"""All four training scripts train in training mode from step 0, after a resume and after an evaluation, on the device
and in the precision that were chosen at their start; so do features, and so does evaluation, in the other mode."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning import LightningModule
from safetensors.torch import save_file

from encoders import Encoder
from mm.artifacts import run as artifacts

CPU = torch.device("cpu")
SHORT = ["--train.steps", 4, "--train.checkpoint_every", 1, "--train.batch_size", 8, "--train.accelerator", "cpu"]


@dataclass
class Watched:
    """steps: the step and the modules in evaluation mode, where it begins. evaluated: encoders read without gradient,
    whether they were in training mode. devices: those of parameters where a step begins and an encoder reads.
    reduced: whether each forward of an encoder was in bfloat16, by whether it was one of a step."""

    steps: list[tuple[int, set[str]]] = field(default_factory=list)
    evaluated: list[bool] = field(default_factory=list)
    devices: set[torch.device] = field(default_factory=set)
    reduced: dict[bool, set[bool]] = field(default_factory=lambda: {True: set(), False: set()})


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    found = Watched()
    forward = Encoder.forward
    probe = artifacts.probe
    probing: list[bool] = []

    def begins(task: LightningModule, *_: Any) -> None:
        still = {name for name, module in task.named_modules() if not module.training}
        found.steps.append((task.global_step, still))
        found.devices.update(parameter.device for parameter in task.parameters())

    def reads(encoder: Encoder, *args: Any, **settings: Any) -> Any:
        learns = torch.is_grad_enabled()
        if not learns:
            found.evaluated.append(encoder.training)
        if not probing:
            found.devices.update(parameter.device for parameter in encoder.parameters())
            found.reduced[learns].add(torch.is_autocast_enabled("cpu"))
        return forward(encoder, *args, **settings)

    def probed(*args: Any) -> Any:
        probing.append(True)  # a fingerprint is of fp32, whatever the run is
        try:
            return probe(*args)
        finally:
            probing.clear()

    monkeypatch.setattr(LightningModule, "on_train_batch_start", begins)
    monkeypatch.setattr(Encoder, "forward", reads)
    monkeypatch.setattr(artifacts, "probe", probed)
    return found


@pytest.fixture
def on_the_set(
    script: Callable[..., None], sets: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Callable[..., None]:
    """on_the_set("train_align.py", *words) trains for four steps, a checkpoint after each; its log begins with the
    device."""

    def start(name: str, *words: object) -> None:
        own = ["--data.root", sets[1], "--runs", tmp_path, "--name", "watched"]
        caplog.clear()
        with caplog.at_level(logging.INFO):
            script(name, *own, *SHORT, *words)
        assert caplog.messages[0].startswith("device: cpu, ")

    return start


@pytest.fixture
def stopped(killed_at: Callable[[int, Callable[[], object]], None]) -> Callable[[Callable[[], object]], None]:
    """stopped(start) kills the run that `start` trains in its third step."""
    return lambda start: killed_at(2, start)


@pytest.fixture(params=[True, False], ids=["bf16", "fp32"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the device multiplies bfloat16, which `--train.precision auto` asks."""
    monkeypatch.setattr("kernels.dispatch.has_bf16", lambda device: request.param)
    return request.param


@pytest.fixture(scope="module")
def trunk_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for a small trunk of timm, so that nothing is fetched."""
    path = tmp_path_factory.mktemp("trunk") / "test_vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


def align_words(weights: Path, frozen: bool) -> list[object]:
    """A small model with a trunk of timm, which its constructor leaves in evaluation mode."""
    trunk = ["--image.trunk", "timm/test_vit", "--image.weights", weights, "--image.frozen", frozen]
    text = ["--text.width", 16, "--text.depth", 1, "--text.heads", 2]
    backbone = ["--model.backbone.width", 32, "--model.backbone.layers", 1, "--model.backbone.heads", 2]
    return ["--model.modalities", "[image,text]", "--image.size", 32, *trunk, *text, *backbone, "--eval.rerank", 0]


@pytest.mark.parametrize("frozen", [False, True])
def test_an_aligned_run_trains_its_trunk_unless_it_is_frozen(
    on_the_set: Callable[..., None],
    watched: Watched,
    trunk_weights: Path,
    tmp_path: Path,
    frozen: bool,
    native: bool,
) -> None:
    cache = ["--data.cache", tmp_path / "cache"]
    on_the_set("train_align.py", *align_words(trunk_weights, frozen), *cache, "--train.evaluate_every", 2)
    assert watched.devices == {CPU} and watched.reduced == {True: {native}, False: {native}}
    assert [step for step, _ in watched.steps] == [0, 1, 2, 3]
    for _, still in watched.steps:
        assert bool(still) == frozen and all(".trunk" in name for name in still)
    assert watched.evaluated and not any(watched.evaluated)


def test_a_resumed_run_trains_in_training_mode(
    on_the_set: Callable[..., None],
    watched: Watched,
    trunk_weights: Path,
    tmp_path: Path,
    stopped: Callable[..., None],
    native: bool,
) -> None:
    words = [*align_words(trunk_weights, False), "--data.cache", tmp_path / "cache", "--train.ema", 0.5]
    stopped(lambda: on_the_set("train_align.py", *words))
    on_the_set("train_align.py", *words, "--resume", "true")
    assert watched.steps == [(2, set()), (3, set())]
    assert watched.devices == {CPU} and watched.reduced == {True: {native}, False: {native}}


def test_a_vqvae_trains_in_training_mode_and_is_evaluated_in_the_other(
    on_the_set: Callable[..., None], watched: Watched, trunk_weights: Path, tmp_path: Path, native: bool
) -> None:
    """In fp32 too: a peak signal-to-noise ratio is no matter of bfloat16."""
    trunk = ["--image.trunk", "timm/test_vit", "--image.weights", trunk_weights]
    words = ["--modality", "image", *trunk, "--image.size", 32]
    on_the_set("train_vqvae.py", *words)
    for checkpoint in (tmp_path / "watched" / "checkpoints").glob("*.ckpt"):
        if not checkpoint.is_symlink() and torch.load(checkpoint, weights_only=True)["global_step"] != 3:
            checkpoint.unlink()
    on_the_set("train_vqvae.py", *words, "--resume", "true")
    assert watched.steps == [(step, set()) for step in (0, 1, 2, 3, 3)]
    assert watched.evaluated and not any(watched.evaluated)
    assert watched.devices == {CPU} and watched.reduced == {True: {native}, False: {False}}


def test_continued_pretraining_trains_in_training_mode(
    on_the_set: Callable[..., None], watched: Watched, run: Path, native: bool
) -> None:
    words = ["--run", run, "--train.evaluate_every", 2]
    on_the_set("continue_pretrain.py", *words)
    assert watched.steps == [(step, set()) for step in range(4)]
    assert watched.evaluated and not any(watched.evaluated)
    assert watched.devices == {CPU} and watched.reduced == {True: {native}, False: {native}}


def test_continued_pretraining_resumes_in_training_mode(
    on_the_set: Callable[..., None], watched: Watched, run: Path, stopped: Callable[..., None], native: bool
) -> None:
    stopped(lambda: on_the_set("continue_pretrain.py", "--run", run))
    on_the_set("continue_pretrain.py", "--run", run, "--resume", "true")
    assert watched.steps == [(2, set()), (3, set())]
    assert watched.devices == {CPU} and watched.reduced == {True: {native}, False: {native}}


def test_fine_tuning_all_weights_trains_in_training_mode(
    on_the_set: Callable[..., None], watched: Watched, run: Path, native: bool
) -> None:
    """The run that is fine-tuned is one of fp32: before and after are evaluated alike."""
    words = ["--run", run, "--strategy", "full", "--train.evaluate_every", 2]
    on_the_set("finetune.py", *words)
    assert watched.steps == [(step, set()) for step in range(4)]
    assert watched.evaluated and not any(watched.evaluated)
    assert watched.devices == {CPU} and watched.reduced == {True: {native}, False: {native}}


def test_fine_tuning_resumes_in_training_mode(
    on_the_set: Callable[..., None], watched: Watched, run: Path, stopped: Callable[..., None], native: bool
) -> None:
    words = ["--run", run, "--strategy", "full", "--general", "false", "--train.ema", 0.5]
    stopped(lambda: on_the_set("finetune.py", *words))
    on_the_set("finetune.py", *words, "--resume", "true")
    assert watched.steps == [(2, set()), (3, set())]
    assert watched.devices == {CPU} and watched.reduced == {True: {native}, False: {native}}


def test_of_an_adapted_run_the_dropout_of_the_adapters_trains_alone(
    on_the_set: Callable[..., None], watched: Watched, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("peft")
    words = ["--run", run, "--strategy", "lora", "--lora.rank", 4, "--general", "false", "--train.evaluate_every", 2]
    on_the_set("finetune.py", *words)
    assert [step for step, _ in watched.steps] == [0, 1, 2, 3]
    for _, still in watched.steps:
        assert "model" in still and not any("lora_dropout" in name for name in still)
    said = [record.getMessage() for record in caplog.records if record.name == "mm.train.callbacks"]
    assert len(said) == 1 and said[0].endswith("in evaluation mode stay: model")
    assert said[0].startswith("training on cpu in ")
