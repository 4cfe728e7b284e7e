"""A run on disk: what is loaded is what was saved, and what cannot be is said in a line."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mm.artifacts.run import VOCABULARY, Run, config_from_dict, load_run, quantize_run, save_run, write_config
from mm.batch import Batch
from mm.compress.quantize import QATConfig
from mm.config import AlignConfig
from mm.model.multimodal import MatchInput


@pytest.fixture
def saved(tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch], tmp_path: Path) -> tuple[Run, Path]:
    run = tiny_run()
    run.model(tiny_batch())
    save_run(run, tmp_path / "run")
    return run.eval(), tmp_path / "run"


def change(path: Path, **changed: object) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_a_run_comes_back_to_the_bit(saved: tuple[Run, Path], tiny_batch: Callable[..., Batch]) -> None:
    run, folder = saved
    loaded = load_run(folder)
    batch = tiny_batch(seed=5)
    assert not loaded.model.training and loaded.config == run.config
    a = run.model(batch)
    b = loaded.model(batch)
    for m in a.embeddings:
        assert torch.equal(a.embeddings[m], b.embeddings[m]) and torch.equal(a.encoded[m].codes, b.encoded[m].codes)
    logits = []
    for model, out in ((run.model, a), (loaded.model, b)):
        pair = MatchInput("image", "text", out.encoded["image"], out.encoded["text"])
        logits.append(model.match([pair]).logits[0])
    assert torch.equal(*logits)
    for name, value in run.loss.state_dict().items():
        assert torch.equal(value, loaded.loss.state_dict()[name])


def test_weights_that_were_changed_are_noticed(saved: tuple[Run, Path]) -> None:
    _, folder = saved
    state = load_file(folder / "model.safetensors")
    name = next(k for k in state if k.startswith("project.image.") and k.endswith("weight"))
    state[name] = -state[name]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or another file: its sha256"):
        load_run(folder)
    change(folder / "model.json", sha256=None)  # as in older runs
    with pytest.raises(ValueError, match="behave differently"):
        load_run(folder)


@pytest.mark.parametrize(
    ("bits", "off", "allowed"),
    [
        (None, 0.02, False),
        (QATConfig(32, 8), 0.02, False),
        (QATConfig(8, 8), 0.02, True),
        (QATConfig(8, 8), 0.08, False),
    ],
)
def test_a_run_that_rounds_what_its_layers_read_may_stray_further(
    bits: QATConfig | None,
    off: float,
    allowed: bool,
    tiny_run: Callable[..., Run],
    tiny_batch: Callable[..., Batch],
) -> None:
    """The order in which threads add is enough to move a value over an edge: one thread refused what two had stored."""
    run = tiny_run()
    run.model(tiny_batch())
    run = run.eval() if bits is None else quantize_run(run.eval(), bits)
    stored = run.fingerprint()
    stored = replace(stored, outputs={name: values * (1 + off) for name, values in stored.outputs.items()})
    with nullcontext() if allowed else pytest.raises(ValueError, match="behave differently"):
        run.check_fingerprint(stored)


def test_a_last_bit_that_the_fingerprint_does_not_see_is_noticed(saved: tuple[Run, Path]) -> None:
    _, folder = saved
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or another file"):
        load_run(folder)
    change(folder / "model.json", sha256=None)
    load_run(folder)


def test_no_finished_run_and_a_run_of_another_kind_are_refused(saved: tuple[Run, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run"):
        load_run(tmp_path / "nowhere")
    change(saved[1] / "model.json", kind="vqvae")
    with pytest.raises(ValueError, match="is a vqvae run"):
        load_run(saved[1])


def test_a_run_of_another_version_is_one_line_that_names_it_and_the_remedy(saved: tuple[Run, Path]) -> None:
    run, folder = saved
    config = asdict(run.config)
    wider = {**config, "image": {**config["image"], "width": 32}}
    for settings, named in (
        ({**config, "modle": 3}, "modle"),
        ({**config, "seed": "many"}, "seed"),
        (wider, r"encoders\.image\..* is \(.*\) in the file and \(.*\) here"),
    ):
        change(folder / "model.json", config=settings)
        with pytest.raises(ValueError, match=f"{folder} cannot be loaded.*{named}.*train it again") as refused:
            load_run(folder)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("prefix", ["pool.image.", "loss.", VOCABULARY])
def test_a_run_without_some_of_its_weights_is_refused(saved: tuple[Run, Path], prefix: str) -> None:
    path = saved[1] / "model.safetensors"
    state = load_file(path)
    save_file({k: v for k, v in state.items() if not k.startswith(prefix)}, path)
    with pytest.raises(ValueError, match=f"{saved[1]} cannot be loaded: .*(absent|vocabulary)"):
        load_run(saved[1])


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "align"}'])
def test_a_damaged_description_is_named(saved: tuple[Run, Path], content: str) -> None:
    (saved[1] / "model.json").write_text(content)
    with pytest.raises(ValueError, match=str(saved[1])):
        load_run(saved[1])


def test_a_config_survives_json_and_yaml(tiny: AlignConfig, tmp_path: Path) -> None:
    config = replace(tiny, model=replace(tiny.model, modalities=("image", "text")), name="other", seed=3)
    assert config_from_dict(json.loads(json.dumps(asdict(config)))) == config
    write_config(config, tmp_path)
    assert config_from_dict(yaml.safe_load((tmp_path / "config.yaml").read_text())) == config


def test_a_config_with_an_unknown_key_is_refused_by_name(tiny: AlignConfig) -> None:
    values = asdict(tiny)
    values["model"]["backbone"]["widht"] = 3
    with pytest.raises(ValueError, match="widht"):
        config_from_dict(values)
    with pytest.raises(ValueError, match=r"train\.steps.*many"):
        config_from_dict({"train": {"steps": "many"}})
