"""Older runs and results load by their new names, and what cannot be built any more is refused by name."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eval.figures import first_protocol, join_figures, split_figures
from mm.artifacts.run import config_from_dict, load_run
from mm.artifacts.upgrade import renamed_flag, upgrade_config, upgrade_result, upgrade_state
from mm.config import AlignConfig

OLD_RUN = Path(__file__).parent / "a239565"
"""A run of that commit: no codes, two terms biased, late interaction called fine, one bottleneck for each modality."""

STORED = Path(__file__).parents[3] / "eval" / "results"
OLD_RESULT = {
    "metrics": {"image_to_text/R@1": 47.239, "seen/image_to_text/R@1": 50.0},
    "intervals": {"image_to_text/R@1": [39.9, 54.6], "seen/image_to_text/R@1": [40.0, 60.0]},
    "protocol": {
        split: {
            "dataset": f"flickr8k/{split}",
            "split": split,
            "images": 1000,
            "captions": 5010,
            "captions_per_image": 5.01,
            "recall": "any-hit",
            "rerank_depth": depth,
            "zero_shot": zero_shot,
            "trained_on": "flickr8k/train",
            "skipped": {"truncated": 3},
        }
        for split, depth, zero_shot in (("val", 10, False), ("seen", 0, True))
    },
    "config": {
        "name": "mine",
        "model": {"backbone": {"moe": {"experts": 128, "active": 8, "hidden": 32}}},
        "image": {"bottleneck": {"quantizer": {"codes": 512}}},
        "loss": {"fine": 0.5, "match_rows": 8},
        "schedule": {"kind": "global_only"},
    },
}


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


def test_a_run_s_protocols_are_today_s() -> None:
    found = split_figures(upgrade_result(OLD_RESULT))
    protocol = found["val"].protocol
    assert (protocol.dataset, protocol.split, protocol.captions_per_image) == ("flickr8k", "val", "5.01")
    assert (protocol.trained_on, protocol.skipped) == ("trained on flickr8k/train", {"truncated": 3})
    assert not protocol.zero_shot and (protocol.rerank_depth, protocol.folds, protocol.task) == (10, 1, "retrieval")
    assert found["seen"].protocol.trained_on == "zero-shot, trained on flickr8k/train"
    assert found["val"].metrics == {"image_to_text/R@1": 47.239} and found["seen"].metrics == {
        "image_to_text/R@1": 50.0
    }


def test_options_have_today_s_names() -> None:
    config = upgrade_result(OLD_RESULT)["config"]
    assert config["model"]["backbone"]["moe"] == {"hidden": 32, "num_experts": 128, "top_k": 8}
    assert config["image"]["bottleneck"]["quantizer"] == {"num_codes": 512}
    assert config["loss"] == {"filip": 0.5, "itm_rows": 8}
    assert config["schedule"]["kind"] == "contrastive_only" and config["name"] == "mine"


def figures(task: str, value: float, **protocol: object) -> dict:
    stated = {
        "dataset": "coco",
        "split": "val",
        "images": 163,
        "captions": 815,
        "captions_per_image": "5",
        "recall": "any-hit",
        "rerank_depth": 0,
        "trained_on": "unstated",
        "folds": 1,
        "ground_truth": "original",
        "skipped": 0,
        "task": task,
    }
    return {"protocol": stated | protocol, "metrics": {"accuracy": value}, "intervals": {"accuracy": [1.0, 99.0]}}


def test_a_run_s_further_protocols_are_evaluations_beside_its_own() -> None:
    old = OLD_RESULT | {"judged": "runs/mine", "protocols": {"all": figures("retrieval", 4.0, skipped=3)}}
    found = upgrade_result(old)
    assert found["evaluated"] == "runs/mine" and not {"judged", "protocols"} & found.keys()
    evaluations = split_figures(found)
    assert list(evaluations) == ["val", "seen", "all"] and evaluations["all"].metrics == {"accuracy": 4.0}
    assert evaluations["all"].protocol.skipped == {"unreadable": 3} and found["metrics"]["all/accuracy"] == 4.0


def test_the_first_protocol_of_a_file_counts_and_is_not_repeated() -> None:
    protocols = {"all": figures("retrieval", 4.0), "five": figures("retrieval", 5.0)}
    old = protocols["all"] | {"judged": "mine.npz", "protocols": protocols}
    found = upgrade_result(old)
    assert found["metrics"] == {"accuracy": 4.0, "five/accuracy": 5.0} and list(found["protocol"]) == ["all", "five"]
    assert first_protocol(found).skipped == {}


def test_classes_are_of_images_or_audio_clips() -> None:
    for before, after in (("pictures", "images"), ("sounds", "audio clips")):
        task = f"zero-shot classification of {before} among 2 classes, 3 prompts each, by cosine"
        old = figures(task, 4.0, dataset="shapes", split="classes")
        found = upgrade_result(old | {"protocols": {"classes": old}})
        assert f"of {after} among 2 classes" in first_protocol(found).task and list(found["protocol"]) == ["classes"]


def test_a_vqvae_s_protocol_is_whole() -> None:
    old = {"dataset": "scenes/val", "split": "val", "images": 60, "captions": 300, "trained_on": "scenes/train"}
    protocol = first_protocol(upgrade_result({"metrics": {}, "intervals": {}, "protocol": old}))
    assert (protocol.name, protocol.captions_per_image) == ("scenes/val", "5")
    assert protocol.trained_on == "trained on scenes/train"


def test_what_is_no_result_is_refused() -> None:
    for content in ({}, {"protocol": {}}, [], None):
        with pytest.raises(ValueError, match="no protocol"):
            upgrade_result(content)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", sorted(STORED.glob("*-on-*.json")), ids=lambda path: path.stem)
def test_stored_results_keep_their_numbers_and_are_upgraded_once(path: Path) -> None:
    old = json.loads(path.read_text())
    before = json.dumps(old)
    found = upgrade_result(old)
    assert json.dumps(old) == before and upgrade_result(found) == found
    seen = {protocol["pretraining"] for protocol in found["protocol"].values()}
    assert len(seen) == 1 and "not stated" not in seen.pop()
    for part in ("metrics", "intervals"):
        assert old[part].items() <= found[part].items()
        for name, further in old.get("protocols", {}).items():
            assert {f"{name}/{figure}": value for figure, value in further[part].items()}.items() <= found[part].items()
    assert json.loads(json.dumps(join_figures(split_figures(found)))).items() <= found.items()


def test_rates_of_an_adaptation_are_among_the_optimizers() -> None:
    settings = {"rates": {"*.term_strength": 100.0, "backbone.*": 0.1}, "optim": {"learning_rate": 1e-5}}
    upgraded = upgrade_config(settings, "config.yaml")
    assert upgraded == {"optim": {"learning_rate": 1e-5, "rates": {"*.term_bias": 100.0, "backbone.*": 0.1}}}
    assert renamed_flag("--rates") == "--rates is now --optim.rates"


@pytest.mark.parametrize("modalities", [["ima"], 5, None, [["image"]]])
def test_settings_of_other_kinds_are_refused_with_their_file(modalities: object) -> None:
    values = {"model": {"modalities": modalities}, "image": {"bottleneck": {"gate": 1}}}
    with pytest.raises(ValueError, match=r"^here"):
        config_from_dict(upgrade_config(values, "here"), "here")
