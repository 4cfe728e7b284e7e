"""A run on disk: weights that load without pickle, the settings beside them, and a result that says how it was made."""

import json
import logging
import os
import platform
import subprocess
import zipfile
from argparse import ArgumentError
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from safetensors.torch import save_file

from encoders.trunks import NO_WEIGHTS, first_difference, read_weights
from eval.fingerprint import Fingerprint, check, fingerprint
from kernels.dispatch import has_bf16
from mm.artifacts.probe import probe
from mm.config import AlignConfig
from mm.files import write_json
from mm.train.task import AlignTask

logger = logging.getLogger(__name__)
VOCABULARY = "encoders.text.trunk.vocabulary"
TERMS = "terms.sequences"
REMEDY = "use the code that wrote it (the commit is in its result.json), or train it again"


def save_weights(task: AlignTask, folder: Path) -> None:
    """model.safetensors (the model's tensors, and the loss's temperatures under `loss.`) and model.json, atomically."""
    state = {**task.model.state_dict(), **{f"loss.{k}": v for k, v in task.loss.state_dict().items()}}
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "model.safetensors.tmp"
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, temporary)
    temporary.replace(folder / "model.safetensors")
    write_json(
        folder / "model.json",
        {"kind": "align", "config": asdict(task.config), "fingerprint": fingerprint(lambda: probe(task)).as_json()},
    )


def load_run(folder: str | Path) -> AlignTask:
    """The task of a finished run, in evaluation mode, checked to behave as it did when it was saved.

    Nothing of the folder is executed. Raises ValueError, naming the folder, where it holds no run that this code can
    load.
    """
    folder = Path(folder)
    described = _described(folder)
    state = read_weights(folder / "model.safetensors")
    try:
        config = config_from_dict(described["config"])
        task = AlignTask(without_pretrained_weights(config), state.get(VOCABULARY))
        if TERMS in state:
            task.model.add_term_bias(state[TERMS])
        loss = {k.removeprefix("loss."): state.pop(k) for k in list(state) if k.startswith("loss.")}
        for module, own in ((task.model, state), (task.loss, loss)):
            if differs := first_difference(own, module.state_dict()):
                raise ValueError(f"model.safetensors does not fit the settings in model.json: {differs}; {REMEDY}")
            module.load_state_dict(own)
        task.config = config
        check(Fingerprint.of_json(described["fingerprint"]), lambda: probe(task))
    except ValueError as error:
        raise ValueError(f"the run {folder} cannot be loaded: {error}") from error
    return task.eval()


def _described(folder: Path) -> dict:
    """The content of model.json."""
    path = folder / "model.json"
    if not (folder / "model.safetensors").is_file() or not path.is_file():
        raise ValueError(f"{folder} holds no finished run: expected model.safetensors and model.json in it")
    try:
        described = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): {REMEDY}") from error
    kind = described.get("kind") if isinstance(described, dict) else None
    if kind != "align":
        raise ValueError(f"{folder} is a {kind} run: this needs one of scripts/train_align.py")
    if absent := {"config", "fingerprint"} - described.keys():
        raise ValueError(f"{path} has no {min(absent)}: {REMEDY}")
    return described


def without_pretrained_weights(config: AlignConfig) -> AlignConfig:
    """The same architecture without fetching or reading trunks: a run's own file holds every tensor."""
    parts: dict[str, Any] = {
        m: replace(getattr(config, m), weights=NO_WEIGHTS, encoder_weights=None) for m in ("image", "audio", "text")
    }
    return replace(config, **parts)


def config_from_dict(values: dict) -> AlignConfig:
    """asdict(config) -> config, with every name and type checked as on the command line.

    Raises ValueError naming a setting that this code does not know, or whose value it does not take.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(AlignConfig, "config")
    try:
        return parser.instantiate(parser.parse_object({"config": values})).config
    except ArgumentError as error:
        raise ValueError(f"settings that this code does not take: {' '.join(str(error).split())}; {REMEDY}") from error


def write_config(config: AlignConfig, folder: Path) -> None:
    """config.yaml, readable by `--config`. Tuples are written as lists."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config))), sort_keys=False))


def newest_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint, to resume from. Raises ValueError where there is none."""
    files = [path for path in (folder / "checkpoints").glob("*.ckpt") if not path.is_symlink()]
    spoiled: list[str] = []
    for path in sorted(files, key=lambda p: p.stat().st_mtime, reverse=True):
        if is_whole(path):
            if spoiled:
                logger.warning("checkpoint %s is not whole: going on from %s", " nor ".join(spoiled), path)
            return path
        spoiled.append(str(path))
    raise ValueError(
        f"--resume true, but {folder / 'checkpoints'} holds no whole checkpoint: leave --resume out to start the run"
    )


def is_whole(checkpoint: Path) -> bool:
    """Neither cut off nor changed: every part of the file has the checksum it was written with."""
    try:
        with zipfile.ZipFile(checkpoint) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, FileNotFoundError):
        return False


def commit() -> str:
    """The commit this code is at, with `+changes` where files differ from it; `unknown` outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware() -> str:
    """One line: the accelerator, or the processor's cores and whether they multiply bfloat16, and torch's version."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, torch {torch.__version__}"
    names = [line.split(":", 1)[1].strip() for line in _cpu_info() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores, {name}{' with bf16' if has_bf16('cpu') else ''}, torch {torch.__version__}"


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
