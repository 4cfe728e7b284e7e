"""Older runs load by their new names, and what cannot be built any more is refused by name."""

import logging
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mm.artifacts.run import config_from_dict, load_run
from mm.artifacts.upgrade import renamed_flag, upgrade_config, upgrade_state
from mm.config import AlignConfig

OLD_RUN = Path(__file__).parent / "a239565"
"""A run of that commit: no codes, two terms biased, late interaction called fine, one bottleneck for each modality."""


def test_a_run_of_a239565_loads_with_its_fingerprint_checked(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run = load_run(OLD_RUN)
    (line,) = [message for message in caplog.messages if "older version" in message]
    assert str(OLD_RUN) in line
    config = run.config
    assert (config.model.backbone.moe.num_experts, config.model.backbone.moe.top_k) == (4, 2)
    assert (config.loss.filip, config.loss.itm_rows, config.schedule.kind) == (0.25, 4, "contrastive_only")
    assert config.optim.rates == {"encoders.text.trunk.*": 0.5} and config.eval.rerank_weights == (2.0, 0.0)
    assert config.bottleneck.mode == "continuous"
    stored = load_file(OLD_RUN / "model.safetensors")
    assert run.loss.filip["image_text"].log_scale.shape == run.model.match_head.bias.shape == (1,)
    assert torch.equal(run.loss.filip["image_text"].log_scale[0], stored["loss.late.image_text.log_scale"])
    bias = run.model.backbone.blocks[0].self_attention.term_bias
    assert torch.equal(bias, stored["backbone.blocks.0.self_attention.term_strength"])


def test_settings_of_today_pass_untouched() -> None:
    values = asdict(AlignConfig(name="x", encoder_weights={"image": "a"}))
    assert upgrade_config(values, "here") == values
    state = {"loss.filip.image_text.log_scale": torch.ones(1), "backbone.norm.weight": torch.ones(3)}
    assert upgrade_state(state) == state


def test_older_settings_are_read_by_their_new_names() -> None:
    old = {
        "data": {"fit": "crop", "in_memory": False},
        "image": {"encoder_weights": "a.safetensors", "reconstruct_images": 4, "learning_rate_factor": 0.1},
        "text": {"encoder_weights": None, "learning_rate_factor": 1.0},
        "loss": {"moe": 1.0, "shared_codes": 256},
    }
    config = config_from_dict(upgrade_config(old, "here"))
    assert config.image.fit == "crop" and config.encoder_weights == {"image": "a.safetensors"}
    assert config.bottleneck.reconstruct == 4 and config.optim.rates == {"encoders.image.trunk.*": 0.1}


def test_what_is_built_in_one_way_only_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert upgrade_config({"audio": {"mels": 32, "width": 8}}, "here") == {"audio": {"width": 8}}
    assert "here: audio.mels=32 is no setting any more, it is 64 for every run" in caplog.text


def test_bottlenecks_that_differ_are_refused() -> None:
    old = {"image": {"bottleneck": {"mode": "vq"}}, "text": {"bottleneck": {"mode": "both"}}}
    with pytest.raises(ValueError, match=r"bottleneck\.mode differs between modalities"):
        upgrade_config(old, "here")


def test_bottlenecks_of_modalities_that_the_model_lacks_do_not_count() -> None:
    old = {
        "model": {"modalities": ["image", "text"]},
        "image": {"bottleneck": {"quantizer": {"codes": 8}}},
        "text": {"bottleneck": {"quantizer": {"codes": 8}}},
        "audio": {"bottleneck": {"quantizer": {"codes": 16}}},
    }
    assert upgrade_config(old, "here")["bottleneck"] == {"quantizer": {"num_codes": 8}}


def test_an_option_that_never_was_is_not_renamed() -> None:
    assert renamed_flag("--loss.fine") == "--loss.fine is now --loss.filip"
    assert renamed_flag("--schedule.learning_rate_factor") is None and renamed_flag("--loss.fien") is None
