"""An adapter on disk: PEFT's format where the layers are PEFT's, and the fingerprint of the run it belongs to."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from encoders.state import first_difference, read_weights, write_weights
from eval.fingerprint import Fingerprint
from kernels.errors import UserError
from kernels.parsing import parse_json
from mm.artifacts.settings import read_text, read_yaml, settings_from_dict
from mm.compress.lora import LoraConfig, adapter_tensors, attach, peft_config, peft_layers
from mm.compress.nf4 import quantize
from mm.files import check_sha256, sha256, write_json

LINEAR = "adapter_model.safetensors"
"""PEFT's layers, under PEFT's names."""
EXPERTS = "experts.safetensors"
"""The fused experts' factors, which PEFT has no names for."""
DESCRIPTION = "adapter.json"
"""What the adapter is, and of which base."""
ADAPTED_DATA = ("root", "train", "val", "audio_root")
"""Settings of the set that a run is adapted to, which are not the base's."""
TRAINING_READS = {"captions": 1, "limit_images": 0, "limit_captions": 0}
"""How training read it, and what holds where config.yaml does not say."""


class Adaptable(Protocol):
    """What an adapter is put on: a run, as `mm.artifacts.run` has it."""

    @property
    def model(self) -> nn.Module:
        """The network, which is changed in place."""

    def check_fingerprint(self, stored: Fingerprint) -> None:
        """Raises ValueError where the model behaves differently from what is stored."""


@dataclass(frozen=True)
class AdapterDescription:
    """The content of adapter.json.

    base: the fingerprint of the run without the adapter, and before its weights were packed. packed_but: what
    `quantize` skipped, where the adapter was trained on packed weights. sha256: of its files of tensors, written by
    `save_adapter`; none of older adapters.
    """

    config: LoraConfig
    base: Fingerprint
    packed_but: tuple[str, ...] | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


def save_adapter(model: nn.Module, described: AdapterDescription, folder: Path) -> None:
    """adapter_model.safetensors and adapter_config.json, which PEFT reads, experts.safetensors, and adapter.json."""
    folder.mkdir(parents=True, exist_ok=True)
    linear, experts = adapter_tensors(model)
    checksums = {}
    for tensors, name in ((linear, LINEAR), (experts, EXPERTS)):
        if tensors:
            write_weights(tensors, folder / name)
            checksums[name] = sha256(folder / name)
    if linear:
        peft_config(described.config, list(peft_layers(model))).save_pretrained(str(folder))
    content = {
        "kind": "lora",
        "config": asdict(described.config),
        "base": described.base.as_json(),
        "packed_but": described.packed_but,
        "sha256": checksums,
    }
    write_json(folder / DESCRIPTION, content)


def read_description(folder: Path) -> AdapterDescription:
    """Raises ValueError where the folder holds no adapter, or a damaged description of one."""
    path = folder / DESCRIPTION
    try:
        content = parse_json(path.read_bytes(), str(path))
        config = settings_from_dict(LoraConfig, content["config"], str(path))
        base = Fingerprint.of_json(content["base"])
        packed_but = None if content["packed_but"] is None else tuple(content["packed_but"])
        checksums = dict(content.get("sha256", {}))
    except UserError as error:
        raise UserError(f"the adapter {folder} cannot be read: {error}") from error
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} holds no adapter: expected adapter.json of scripts/finetune.py in it") from error
    return AdapterDescription(config, base, packed_but, checksums)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a whole run."""
    return (folder / DESCRIPTION).is_file()


@dataclass(frozen=True)
class Adapted:
    """What the config.yaml of the fine-tuning says of an adapter.

    Args:
        base: the folder of the run that was adapted, or of another adapter.
        data: settings of the set it was adapted to, by their names in `mm.data.config.DataConfig`.
        fit: how its images become squares; None where that is as the base has it.
    """

    base: Path
    data: dict[str, Any]
    fit: str | None = None


def read_adapted(folder: Path) -> Adapted:
    """Read which run an adapter belongs to: from config.yaml of scripts/finetune.py, in its folder or the one around.

    Args:
        folder: of the adapter.

    Raises:
        ValueError: there is no such config.yaml.
    """
    places = (folder / "config.yaml", folder.parent / "config.yaml")
    for path in places:
        if path.is_file():
            content = read_yaml(read_text(path), str(path))
            try:
                given = content["data"]
                data = {name: given[name] for name in ADAPTED_DATA}
                for name, default in TRAINING_READS.items():
                    data[name] = given.get(name, default)
                return Adapted(Path(content["run"]), data, given.get("fit"))
            except (KeyError, TypeError) as error:
                raise UserError(f"{path} is not of scripts/finetune.py: it names no run and data.root") from error
    raise UserError(
        f"the adapter {folder} does not say what its base is: put the config.yaml of its fine-tuning beside it"
    )


def load_adapter(run: Adaptable, folder: str | Path) -> LoraConfig:
    """Attach the adapter in a folder to the run it was trained on, packing its weights if they were packed then.

    Raises ValueError where the folder holds none, or the run is another base.
    """
    folder = Path(folder)
    described = read_description(folder)
    try:
        run.check_fingerprint(described.base)
    except UserError as error:
        raise UserError(f"the adapter {folder} was trained on another base: {error}") from error
    if described.packed_but is not None:
        quantize(run.model, described.packed_but)
    attach(run.model, described.config)
    linear, experts = adapter_tensors(run.model)
    for own, name in ((linear, LINEAR), (experts, EXPERTS)):
        loaded = read_weights(folder / name) if own else {}
        if differs := first_difference(loaded, own):
            raise UserError(f"the adapter {folder / name} does not fit its adapter.json: {differs}")
        if own:
            check_sha256(folder / name, described.sha256.get(name))
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(loaded[key])
    return described.config
