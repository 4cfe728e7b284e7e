"""Going on where a run stopped: the newest whole checkpoint, and the settings it was begun with."""

import logging
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

logger = logging.getLogger(__name__)


def newest_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint, to resume from. Raises ValueError where there is none."""
    checkpoints = folder / "checkpoints"
    files = [path for path in checkpoints.glob("*.ckpt") if not path.is_symlink()]
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    spoiled: list[str] = []
    for path in files:
        if is_whole(path):
            if spoiled:
                logger.warning("checkpoint %s is not whole: going on from %s", " nor ".join(spoiled), path)
            return path
        spoiled.append(str(path))
    raise ValueError(f"--resume true, but {checkpoints} holds no whole checkpoint: leave --resume out to start the run")


def is_whole(checkpoint: Path) -> bool:
    """Neither cut off nor changed: every part of the file has the checksum it was written with."""
    try:
        with zipfile.ZipFile(checkpoint) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, FileNotFoundError):
        return False


def require_same_settings(config: Any, folder: Path) -> None:
    """Raises ValueError, naming the first setting that differs, unless folder/config.yaml is of these settings."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"--resume true, but {folder} holds no run: leave --resume out to start it")
    stored = dict(_flat(yaml.safe_load(path.read_text())))
    own = dict(_flat(asdict(config)))
    for name in sorted(own.keys() | stored.keys()):
        if name != "resume" and own.get(name) != stored.get(name):
            raise ValueError(
                f"--resume true, but {folder} was begun with {name}={stored.get(name)}, not"
                f" {own.get(name)}: give the same settings, or another --name and no --resume"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by their dotted names; tuples are lists, as YAML has them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value
