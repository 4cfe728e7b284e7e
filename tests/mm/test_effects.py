"""An option that would do nothing beside the others is refused by name; a flag that overrides a file is not."""

from collections.abc import Sequence
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

import pytest

from mm.adapt.config import ContinueConfig, FinetuneConfig
from mm.bench.config import FeaturesConfig, StepConfig
from mm.cli import run_command
from mm.config import AlignConfig
from mm.effects import ALIGN, CONTINUE, FEATURES, FINETUNE, STEP, VQVAE, Needs, nested_leaves
from mm.study import read_study
from mm.train.vqvae_config import VQVAEConfig

CONFIGS = Path(__file__).parents[2] / "configs"
ADAPTED = ["--run", "r", "--data.root", "d"]
Case = tuple[type, Sequence[Needs], list[str]]


def says(case: Case, capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which a command ends, or "" where it goes on."""
    component, needs, words = case
    try:
        run_command(component, arguments=words, needs=needs)
    except SystemExit:
        (line,) = capsys.readouterr().err.splitlines()
        return line
    return ""


ALIGNED = [
    ("--data.karpathy k.json", "data.karpathy"),
    ("--data.audio_root a", "data.audio_root"),
    ("--data.root d --data.audio_root a --model.modalities [image,text]", "data.audio_root"),
    ("--data.views 2", "data.views"),
    ('--data.augment {"flip":true} --model.modalities [audio,text]', "data.augment"),
    ("--data.augment.flip true --image.frozen true --image.trunk timm/x", "data.augment"),
    ("--data.captions 2 --model.modalities [image,audio]", "data.captions"),
    ("--data.limit_captions 2 --model.modalities [image,audio]", "data.limit_captions"),
    ("--model.modalities [image,text] --audio.width 64", "audio.width"),
    ("--image.trunk timm/x --image.width 64", "image.width"),
    ("--image.trunk timm/x --image.stride 8", "image.stride"),
    ("--audio.trunk timm/x --audio.depth 2", "audio.depth"),
    ("--text.trunk hf/x --text.heads 2", "text.heads"),
    ("--image.weights w", "image.weights"),
    ("--text.trunk hf/x --text.weights w", "text.weights"),
    ("--text.trunk open_clip/x:tag --text.weights w", "text.weights"),
    ("--image.frozen true", "image.frozen"),
    ("--text.trunk open_clip/x --text.frozen true", "text.frozen"),
    ("--image.pool 2", "image.pool"),
    ("--bottleneck.mode continuous --bottleneck.quantizer.num_codes 8", "bottleneck.quantizer.num_codes"),
    ("--bottleneck.mode continuous --loss.vq 1", "loss.vq"),
    ("--bottleneck.quantizer.levels [4,4]", "bottleneck.quantizer.levels"),
    ("--bottleneck.quantizer.kind fsq --bottleneck.quantizer.num_codes 8", "bottleneck.quantizer.num_codes"),
    ("--bottleneck.quantizer.kind simvq --bottleneck.quantizer.decay 0.5", "bottleneck.quantizer.decay"),
    ("--schedule.kind joint --schedule.stage2 0.1", "schedule.stage2"),
    ('--schedule.kind joint --schedule {"stage2":0.15}', "schedule.stage2"),
    ("--schedule.kind few_tokens --schedule.stage2 0.1", "schedule.stage2"),
    ("--schedule.kind hardening --schedule.stage3 0.9", "schedule.stage3"),
    ("--schedule.kind detail_later --schedule.learning_rate_factor 0.9", "schedule.learning_rate_factor"),
    ("--schedule.kind codes_later --bottleneck.mode vq", "schedule.kind"),
    ("--schedule.kind projections_first --bottleneck.mode vq", "schedule.kind"),
    ("--schedule.kind projections_first --model.direct false", "schedule.kind"),
    ("--schedule.kind projections_first --model.generate true", "schedule.kind"),
    ("--schedule.kind detail_on_top", "schedule.kind"),
    ("--schedule.kind detail_on_top --model.token_head 8 --model.direct false", "schedule.kind"),
    ("--schedule.kind detail_on_top --model.token_head 8 --loss.itm 1", "loss.itm"),
    ("--schedule.kind contrastive_only --model.token_head 8", "model.token_head"),
    ("--schedule.kind detail_apart --model.token_head 8", "model.token_head"),
    ("--schedule.kind contrastive_only --eval.rerank 5", "eval.rerank"),
    ("--schedule.kind joint --loss.itm 0 --loss.filip 0 --eval.rerank 5", "eval.rerank"),
    ("--schedule.kind anchor_first --model.modalities [image,text]", "schedule.kind"),
    ("--schedule.kind hardening --loss.itm 1", "loss.itm"),
    ("--schedule.kind contrastive_only --loss.itm 1", "loss.itm"),
    ("--schedule.kind joint --loss.filip 0 --loss.filip_rows 4", "loss.filip_rows"),
    ("--schedule.kind joint --loss.itm 0 --loss.itm_rows 4", "loss.itm_rows"),
    ("--model.head_dropout 0.1", "model.head_dropout"),
    ("--loss.continuation 1", "loss.continuation"),
    ("--model.backbone.moe.top_k 128 --model.backbone.moe.balance 1", "model.backbone.moe.balance"),
    ("--model.backbone.layers 0 --model.backbone.moe.top_k 4", "model.backbone.moe.top_k"),
    ("--eval.rerank 0 --eval.rerank_weights [1,0]", "eval.rerank_weights"),
    ("--train.evaluate_every 500", "train.evaluate_every"),
]
OTHERS = [
    ((VQVAEConfig, VQVAE, ["--audio.width", "8"]), "audio.width"),
    ((VQVAEConfig, VQVAE, ["--train.ema", "0.9"]), "train.ema"),
    ((VQVAEConfig, VQVAE, ["--train.freeze", "[a]"]), "train.freeze"),
    ((FinetuneConfig, FINETUNE, [*ADAPTED, "--strategy", "full", "--lora.rank", "4"]), "lora.rank"),
    ((FinetuneConfig, FINETUNE, [*ADAPTED, "--train.devices", "2"]), "train.devices"),
    ((FinetuneConfig, FINETUNE, [*ADAPTED, "--schedule.stage2", "0.1"]), "schedule.stage2"),
    ((ContinueConfig, CONTINUE, [*ADAPTED, "--patience", "2"]), "patience"),
    ((ContinueConfig, CONTINUE, [*ADAPTED, "--optim.warmup", "0.1"]), "optim.warmup"),
    ((FeaturesConfig, FEATURES, ["--loss.vq", "1"]), "loss.vq"),
    ((StepConfig, STEP, ["--resume", "true"]), "resume"),
]


@pytest.mark.parametrize("words, option", ALIGNED)
def test_an_option_without_effect_is_refused(words: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = says((AlignConfig, ALIGN, words.split()), capsys)
    assert f": {option}=" in line and "has no effect: it needs" in line


@pytest.mark.parametrize("case, option", OTHERS)
def test_every_command_refuses_its_own(case: Case, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = says(case, capsys)
    assert f": {option}=" in line and "has no effect: it needs" in line


def test_a_file_is_refused_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("data: {karpathy: k.json}")
    assert "data.karpathy=k.json has no effect" in says(
        (AlignConfig, ALIGN, ["--config", str(tmp_path / "c.yaml")]), capsys
    )


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("words", [[], ["--schedule.kind", "contrastive_only"], ["--eval.rerank", "0"]])
def test_a_counterfactual_is_one_flag_away_from_a_file(
    path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert says((AlignConfig, ALIGN, ["--config", str(path), *words]), capsys) == ""


@pytest.mark.parametrize("path", sorted((CONFIGS / "ablations").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_variant_of_a_study_does_something(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    for run in read_study(path, [0], None):
        assert says((AlignConfig, ALIGN, run.options(Path("runs"))), capsys) == "", run.variant


@pytest.mark.parametrize(
    "component, needs",
    [
        (AlignConfig(), ALIGN),
        (VQVAEConfig(), VQVAE),
        (StepConfig(), STEP),
        (FeaturesConfig(), FEATURES),
        (FinetuneConfig("r", data=None), FINETUNE),  # type: ignore[arg-type]
        (ContinueConfig("r", data=None), CONTINUE),  # type: ignore[arg-type]
    ],
)
def test_no_need_is_of_an_option_that_does_not_exist(component: Any, needs: Sequence[Needs]) -> None:
    names = [name for name, _ in nested_leaves(component)]
    unknown = [option for need in needs for option in need.options.split() if not matching(names, option)]
    assert set(unknown) <= {"loss.vq"}  # a VQ-VAE has no alignment loss
