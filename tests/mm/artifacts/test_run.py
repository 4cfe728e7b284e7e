"""A run on disk: what is loaded is what was saved, and what cannot be is said in a line."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mm.artifacts.run import VOCABULARY, config_from_dict, load_run, newest_checkpoint, save_weights, write_config
from mm.batch import Batch
from mm.config import AlignConfig
from mm.train.task import AlignTask


@pytest.fixture
def saved(
    tiny_task: Callable[..., AlignTask], tiny_batch: Callable[..., Batch], tmp_path: Path
) -> tuple[AlignTask, Path]:
    task = tiny_task()
    task.model(tiny_batch())
    save_weights(task, tmp_path / "run")
    return task.eval(), tmp_path / "run"


def change(path: Path, **changed: object) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_a_run_comes_back_to_the_bit(saved: tuple[AlignTask, Path], tiny_batch: Callable[..., Batch]) -> None:
    task, folder = saved
    loaded, batch = load_run(folder), tiny_batch(seed=5)
    assert not loaded.training and loaded.config == task.config
    a, b = task.model(batch), loaded.model(batch)
    for m in a.embeddings:
        assert torch.equal(a.embeddings[m], b.embeddings[m]) and torch.equal(a.encoded[m].codes, b.encoded[m].codes)
    x, y = (t.model.match("image", "text", o.encoded["image"], o.encoded["text"]) for t, o in ((task, a), (loaded, b)))
    assert torch.equal(x.logits, y.logits)
    for name, value in task.loss.state_dict().items():
        assert torch.equal(value, loaded.loss.state_dict()[name])


def test_weights_that_were_changed_are_noticed(saved: tuple[AlignTask, Path]) -> None:
    _, folder = saved
    state = load_file(folder / "model.safetensors")
    name = next(k for k in state if k.startswith("project.image.") and k.endswith("weight"))
    state[name] = -state[name]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match="behave differently"):
        load_run(folder)


def test_no_finished_run_and_a_run_of_another_kind_are_refused(saved: tuple[AlignTask, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run"):
        load_run(tmp_path / "nowhere")
    change(saved[1] / "model.json", kind="vqvae")
    with pytest.raises(ValueError, match="is a vqvae run"):
        load_run(saved[1])


def test_a_run_of_another_version_is_one_line_that_names_it_and_the_remedy(saved: tuple[AlignTask, Path]) -> None:
    task, folder = saved
    config = asdict(task.config)
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
def test_a_run_without_some_of_its_weights_is_refused(saved: tuple[AlignTask, Path], prefix: str) -> None:
    path = saved[1] / "model.safetensors"
    state = load_file(path)
    save_file({k: v for k, v in state.items() if not k.startswith(prefix)}, path)
    with pytest.raises(ValueError, match=f"{saved[1]} cannot be loaded: .*(absent|vocabulary)"):
        load_run(saved[1])


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "align"}'])
def test_a_damaged_description_is_named(saved: tuple[AlignTask, Path], content: str) -> None:
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


def checkpoint(path: Path, age: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.save({"global_step": age, "weight": torch.rand(1000)}, path)
    os.utime(path, (1000 - age, 1000 - age))
    return path


def test_the_newest_whole_checkpoint_is_resumed_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = (checkpoint(tmp_path / "checkpoints" / f"{n}.ckpt", age) for n, age in (("z", 9), ("a", 1)))
    assert newest_checkpoint(tmp_path) == new
    whole = new.read_bytes()
    at = len(whole) // 2
    (new.parent / "last.ckpt").symlink_to("deleted.ckpt")
    for spoiled in (whole[:-50], whole[: at // 2], whole[:at] + bytes(200) + whole[at + 200 :], b""):
        new.write_bytes(spoiled)
        os.utime(new, (999, 999))
        caplog.clear()
        assert newest_checkpoint(tmp_path) == old
        (line,) = caplog.messages
        assert line.endswith(f"a.ckpt is not whole: going on from {old}")


def test_no_checkpoint_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no whole checkpoint: leave --resume out"):
        newest_checkpoint(tmp_path)
