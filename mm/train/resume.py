"""Resume a run where it stopped: the newest whole checkpoint, and the settings that the run was begun with."""

import logging
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

logger = logging.getLogger(__name__)


def newest_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint of a run, to resume from; newer ones that are not whole are logged.

    Args:
        folder: of the run.

    Raises:
        ValueError: the run has no whole checkpoint.
    """
    checkpoints = folder / "checkpoints"
    files = [path for path in checkpoints.glob("*.ckpt") if not path.is_symlink()]
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    spoiled: list[str] = []
    for path in files:
        if not is_whole(path):
            spoiled.append(str(path))
            continue
        if spoiled:
            names = " nor ".join(spoiled)
            logger.warning("checkpoint %s is not whole: going on from %s", names, path)
        return path
    raise ValueError(f"--resume true, but {checkpoints} holds no whole checkpoint: leave --resume out to start the run")


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is neither cut off nor changed: every part of the zip file has its checksum."""
    try:
        with zipfile.ZipFile(checkpoint) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, FileNotFoundError):
        return False


def require_same_settings(config: Any, folder: Path) -> None:
    """Refuse to resume a run with other settings than it was begun with.

    Args:
        config: a dataclass of settings; `resume` itself may differ.
        folder: of the run, with its config.yaml.

    Raises:
        ValueError: there is no run, or a setting differs; the message names the first one.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"--resume true, but {folder} holds no run: leave --resume out to start it")
    content = yaml.safe_load(path.read_text())
    stored = dict(_flat(content))
    settings = asdict(config)
    own = dict(_flat(settings))
    for name in sorted(own.keys() | stored.keys()):
        before = stored.get(name)
        now = own.get(name)
        if name != "resume" and now != before:
            raise ValueError(
                f"--resume true, but {folder} was begun with {name}={before}, not {now}: give the same settings, or"
                " another --name and no --resume"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by their dotted names; tuples are lists, as YAML has them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, tuple):
            yield f"{prefix}{name}", list(value)
        else:
            yield f"{prefix}{name}", value
