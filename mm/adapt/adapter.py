"""An adapter on disk: PEFT's format where the layers are PEFT's, and the fingerprint of the run it belongs to."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from encoders.state import first_difference, read_weights
from eval.fingerprint import Fingerprint, check
from mm.adapt.lora import LoraConfig, adapter_tensors, attach, peft_config, peft_layers
from mm.artifacts.probe import probe
from mm.compress.nf4 import quantize
from mm.files import write_json
from mm.train.task import AlignTask


def save_adapter(
    model: nn.Module, config: LoraConfig, folder: Path, base: Fingerprint, packed_but: tuple[str, ...] | None = None
) -> None:
    """adapter_model.safetensors and adapter_config.json, which PEFT reads, experts.safetensors, and adapter.json.

    base: the fingerprint of the run without the adapter, and before its weights were packed. packed_but: what
    `quantize` skipped, where the adapter was trained on packed weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    linear, experts = adapter_tensors(model)
    for tensors, name in ((linear, "adapter_model"), (experts, "experts")):
        if tensors:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, folder / f"{name}.safetensors")
    if linear:
        peft_config(config, list(peft_layers(model))).save_pretrained(str(folder))
    write_json(
        folder / "adapter.json",
        {"kind": "lora", "config": asdict(config), "base": base.as_json(), "packed_but": packed_but},
    )


def load_adapter(task: AlignTask, folder: str | Path) -> LoraConfig:
    """Attach the adapter in a folder to the run it was trained on, packing its weights if they were packed then.

    Raises ValueError where the folder holds none, or the task is another base.
    """
    folder = Path(folder)
    try:
        described = json.loads((folder / "adapter.json").read_text())
        config = LoraConfig(**described["config"] | {"targets": tuple(described["config"]["targets"])})
        stored, packed_but = Fingerprint.of_json(described["base"]), described["packed_but"]
    except (FileNotFoundError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} holds no adapter: expected adapter.json of scripts/finetune.py in it") from error
    try:
        check(stored, lambda: probe(task))
    except ValueError as error:
        raise ValueError(f"the adapter {folder} was trained on another base: {error}") from error
    if packed_but is not None:
        quantize(task.model, tuple(packed_but))
    attach(task.model, config)
    for own, name in zip(adapter_tensors(task.model), ("adapter_model", "experts"), strict=True):
        loaded = read_weights(folder / f"{name}.safetensors") if own else {}
        if differs := first_difference(loaded, own):
            raise ValueError(f"the adapter {folder / name}.safetensors does not fit its adapter.json: {differs}")
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(loaded[key])
    return config
