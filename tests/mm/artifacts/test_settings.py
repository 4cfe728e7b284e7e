"""Nothing imports what data names: a module is planted in a run, importable, and stays untouched."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from encoders.state import read_weights, save_encoder
from eval.embeddings import Embeddings
from kernels.errors import UserError
from mm.artifacts.adapter import read_adapted, read_description
from mm.artifacts.run import Run, load_run, save_run
from mm.artifacts.settings import by_group, merged, read_yaml, settings_from_dict
from mm.cli import run_command
from mm.config import AlignConfig
from mm.study import read_study

CLASS = "runs.x.payload.Evil"


class Payload:
    """Pickled, it would make a folder when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: Callable[..., Run]) -> Path:
    """The folder of a run with a module in it, importable from the working directory."""
    folder = tmp_path / "runs" / "x"
    save_run(tiny_run(), folder)
    for package in (folder.parent, folder):
        (package / "__init__.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\n")
    (folder / "payload.py").write_text("class Evil: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


@pytest.fixture
def untouched(planted: Path) -> Callable[[], bool]:
    """Whether nothing of the run was imported or executed so far."""
    return lambda: not Path("mark").exists() and not [name for name in sys.modules if name.split(".")[0] == "runs"]


NAMED = [
    ({"class_path": CLASS}, "class_path"),
    ({"data": {"class_path": CLASS}}, "data.class_path"),
    ({"data": {"augment": {"class_path": CLASS}}}, "data.augment.class_path"),
    ({"data": {"augment": CLASS}}, "data.augment"),
    ({"data.augment.class_path": CLASS}, "data.augment.class_path"),
    ({"data.class_path": CLASS}, "data.class_path"),
    ({"image": CLASS}, "image"),
    ({"image": "other.yaml"}, "image"),
    ({"config": "other.yaml"}, "config"),
    ({"optim": {"rates": {"class_path": CLASS}}}, "optim.rates.class_path"),
    ({"encoder_weights": {"image": {"class_path": CLASS}}}, "encoder_weights.image.class_path"),
]
"""Settings that name a class, and the key that an error names."""


@pytest.mark.parametrize("settings, key", NAMED)
def test_model_json_imports_nothing(
    planted: Path, untouched: Callable[[], bool], settings: dict[str, Any], key: str
) -> None:
    Path("other.yaml").write_text(f"class_path: {CLASS}")
    described = json.loads((planted / "model.json").read_text())
    described["config"] |= settings
    (planted / "model.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"model\.json") as refused:
        load_run(planted)
    assert f": {key}" in str(refused.value) and untouched()


@pytest.mark.parametrize("settings, key", NAMED)
@pytest.mark.parametrize("words", [["--config", "c.yaml"], ["--config=c.yaml"]])
def test_a_config_file_imports_nothing(
    untouched: Callable[[], bool],
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
    key: str,
    words: list[str],
) -> None:
    Path("other.yaml").write_text(f"class_path: {CLASS}")
    Path("c.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit):
        run_command(AlignConfig, arguments=words)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"c.yaml: {key}" in line and untouched()


@pytest.mark.parametrize(
    "words", [["--data", "c.yaml"], ["--data.augment", CLASS], ["--data.augment.class_path", CLASS], ["--image=c.yaml"]]
)
def test_the_command_line_of_a_study_s_run_imports_nothing(
    untouched: Callable[[], bool], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """Its words are the study's, which may be a stranger's."""
    Path("c.yaml").write_text(f"class_path: {CLASS}")
    with pytest.raises(SystemExit):
        run_command(AlignConfig, arguments=words)
    assert len(capsys.readouterr().err.splitlines()) == 1 and untouched()


@pytest.mark.parametrize("name", ["data.augment", "data.class_path", "image"])
def test_a_study_imports_nothing(planted: Path, untouched: Callable[[], bool], name: str) -> None:
    Path("s.yaml").write_text(yaml.safe_dump({"variants": {"a": {name: CLASS}}}))
    with pytest.raises(ValueError, match=f"s.yaml, a: {name}"):
        read_study(Path("s.yaml"), None, None)
    assert untouched()


@pytest.mark.parametrize("trunk", ["hf/package:runs.x.payload", "hf/package:runs/x", "hf/package:runs.x/", "hf/runs/x"])
def test_a_trunk_of_a_package_imports_nothing(planted: Path, untouched: Callable[[], bool], trunk: str) -> None:
    described = json.loads((planted / "model.json").read_text())
    described["config"]["text"]["trunk"] = trunk
    (planted / "model.json").write_text(json.dumps(described))
    (planted / "config.json").write_text('{"auto_map": {"AutoConfig": "payload.Evil", "AutoModel": "payload.Evil"}}')
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_run(planted)
    assert untouched()


def test_an_adapter_imports_nothing(planted: Path, untouched: Callable[[], bool]) -> None:
    (planted / "config.yaml").write_text("run: !!python/name:runs.x.payload.Evil\ndata: {}")
    with pytest.raises(ValueError, match=r"config\.yaml is no YAML of plain values"):
        read_adapted(planted)
    content = {"config": {"class_path": CLASS}, "base": {}, "packed_but": None}
    (planted / "adapter.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"adapter\.json: class_path"):
        read_description(planted)
    assert untouched()


def test_weights_and_embeddings_are_not_unpickled(planted: Path, untouched: Callable[[], bool]) -> None:
    payload = Payload(Path("mark").resolve())
    torch.save({"weight": payload}, planted / "weights.pt")
    torch.save({"weight": payload}, planted / "model.safetensors")
    np.savez(planted / "embeddings.npz", image=np.array([payload], dtype=object))
    for read, name in ((read_weights, "weights.pt"), (read_weights, "model.safetensors"), (Embeddings.load, "")):
        with pytest.raises(ValueError):
            read(planted / name)
    with pytest.raises(ValueError):
        load_run(planted)
    assert untouched()


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"here is no YAML .* 'steps' stands twice"):
        read_yaml("train: {steps: 3, steps: 4}", "here")
    assert read_yaml("a: {b: 1}\nc: {b: 2}", "here") == {"a": {"b": 1}, "c": {"b": 2}}


@pytest.mark.parametrize("text", ["a: " + "7" * 5000, "[" * 2000, "a: 2024-13-45"], ids=["digits", "nesting", "date"])
def test_yaml_that_no_parser_takes_is_a_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^here is no YAML of plain values") as refused:
        read_yaml(text, "here")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["train.steps", "model.backbone", "train.precision", "text.trunk"])
def test_null_is_no_value_of_a_setting_that_needs_one(name: str) -> None:
    """jsonargparse takes it for every type."""
    with pytest.raises(UserError, match=rf"^here: {name} is null: give it a value, or leave it out"):
        by_group({name: None}, AlignConfig, "here")


def test_a_number_out_of_its_range_is_said_with_the_file() -> None:
    with pytest.raises(UserError, match=r"^here: .*train\.ema=2"):
        settings_from_dict(AlignConfig, {"train": {"ema": 2}}, "here")


def test_settings_of_one_file_leave_none_in_the_next() -> None:
    first = settings_from_dict(AlignConfig, {"train": {"steps": 7}, "model": {"modalities": ["image", "text"]}}, "one")
    assert first.train.steps == 7 and first.model.modalities == ("image", "text")
    assert settings_from_dict(AlignConfig, {}, "two") == AlignConfig()


def test_dotted_names_are_nested_beside_the_others() -> None:
    found = by_group({"train.steps": 3, "train": {"ema": 0.5}, "name": "x", "data.augment": None}, AlignConfig, "here")
    assert found == {"train": {"steps": 3, "ema": 0.5}, "name": "x", "data": {"augment": None}}
    config = settings_from_dict(AlignConfig, found, "here")
    assert (config.train.steps, config.train.ema, config.name) == (3, 0.5, "x")


def test_weights_follow_the_umask(planted: Path, tiny_run: Callable[..., Run]) -> None:
    before = os.umask(0o027)
    try:
        save_run(tiny_run(), planted)
        save_encoder(tiny_run().model.encoders["image"], planted / "image.safetensors")
    finally:
        os.umask(before)
    for name in ("model.safetensors", "image.safetensors", "model.json"):
        assert (planted / name).stat().st_mode & 0o777 == 0o640
    assert not list(planted.glob(".*.part"))


def test_dotted_settings_of_one_deep_group_are_all_kept() -> None:
    values = {"model.backbone.layers": 2, "model.backbone.width": 64, "optim.rates": {"a": 0.5}}
    found = settings_from_dict(AlignConfig, values, "here")
    assert (found.model.backbone.layers, found.model.backbone.width, found.optim.rates) == (2, 64, {"a": 0.5})


def test_settings_on_top_of_others_join_groups_and_replace_everything_else() -> None:
    base = {"model": {"embedding": 8, "backbone": {"layers": 1}}, "optim": {"rates": {"a": 0.5}}}
    changes = {"model": {"backbone": {"width": 64}}, "optim": {"rates": {"b": 0.1}}}
    assert merged(base, changes, AlignConfig) == {
        "model": {"embedding": 8, "backbone": {"layers": 1, "width": 64}},
        "optim": {"rates": {"b": 0.1}},
    }
