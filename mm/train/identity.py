"""What makes a run the run it is, and who may write into its folder.

identity.json is written once, after all checks, and compared whenever a run of its name is resumed. It holds the
settings without names and places of this machine, and digests of what these places hold.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kernels.errors import UserError
from kernels.parsing import parse_json
from mm.artifacts.environment import is_main_process
from mm.artifacts.run import write_config
from mm.artifacts.settings import flat
from mm.data.dataset import CaptionDataset
from mm.files import InUseError, locked, write_json

logger = logging.getLogger(__name__)
FREE = (
    "name",
    "runs",
    "resume",
    "run",
    "terms",
    "data.root",
    "data.cache",
    "data.karpathy",
    "data.audio_root",
    "data.workers",
    "*.weights",
    "encoder_weights*",
    "optim.learning_rate",
    "train.accelerator",
    "train.devices",
    "train.num_nodes",
    "train.strategy",
    "train.checkpoint_every",
    "train.logger",
)
"""Settings that may differ when a run goes on: names, places, the machine, and the rate that a diverging run lowers."""
FILE = "identity.json"


@dataclass(frozen=True)
class Identity:
    """What must be equal for a run to go on.

    Args:
        settings: values by dotted names, without those of FREE.
        digests: of initial weights, training samples and whatever else comes from outside, by what they are of.
    """

    settings: dict[str, Any]
    digests: dict[str, str]

    @classmethod
    def of(cls, config: Any, digests: Mapping[str, str]) -> "Identity":
        """Of a dataclass of settings."""
        values = json.dumps(asdict(config))
        kept = {}
        for name, value in flat(json.loads(values)).items():
            if not any(fnmatchcase(name, pattern) for pattern in FREE):
                kept[name] = value
        return cls(kept, dict(digests))

    @classmethod
    def load(cls, folder: Path) -> "Identity":
        """Of the run in a folder. Raises ValueError where there is none that can be read."""
        path = folder / FILE
        try:
            stored = parse_json(path.read_bytes(), "it")
            return cls(stored["settings"], stored["digests"])
        except FileNotFoundError:
            raise UserError(f"--resume true, but {folder} holds no run: leave --resume out to start it") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}): leave --resume out to begin the run anew") from error

    def difference(self, other: "Identity") -> str:
        """The first thing in which another identity differs, in words; "" where they are equal."""
        for name in sorted(self.settings.keys() | other.settings.keys()):
            mine = self.settings.get(name)
            theirs = other.settings.get(name)
            if mine != theirs:
                return f"{name}={mine}, not {theirs}"
        for name in sorted(self.digests.keys() | other.digests.keys()):
            if self.digests.get(name) != other.digests.get(name):
                return f"other {name}"
        return ""


def samples_digest(dataset: CaptionDataset) -> str:
    """A short sha256 of what a split's samples are and have, in their order, whatever files hold them."""
    captions = [list(texts) for texts in dataset.captions]
    return digest_of([list(dataset.image_ids), captions, list(dataset.has_image), list(dataset.has_audio)])


def digest_of(content: Any) -> str:
    """A short sha256 of what JSON can hold."""
    written = json.dumps(content)
    return hashlib.sha256(written.encode()).hexdigest()[:16]


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder against other processes. Of several processes of one run, the first one holds it.

    Args:
        folder: of the run; the lock stands beside it.

    Raises:
        ValueError: another process holds it; the message names the process.
    """
    if not is_main_process():
        yield
        return
    try:
        with locked(folder, wait=False):
            yield
    except InUseError as error:
        raise UserError(f"{folder} is in use by {error}: wait for it, or give another --name") from None


def begin(folder: Path, identity: Identity, config: Any, resume: bool) -> None:
    """Begin a run in its folder, or check that the run which is there may go on.

    A run that is there and not resumed is moved aside, never replaced.

    Args:
        folder: of the run.
        identity: of the run that is asked for.
        config: a dataclass of all its settings, for config.yaml.
        resume: whether the run in the folder goes on; then nothing is written.

    Raises:
        ValueError: there is no run to resume, or it was begun otherwise; the message names the first difference.
    """
    if resume:
        stored = Identity.load(folder)
        if differs := stored.difference(identity):
            raise UserError(
                f"--resume true, but {folder} was begun with {differs}: give the same settings, or another --name and"
                " no --resume"
            )
        return
    if not is_main_process():
        return
    if folder.exists() and any(folder.iterdir()):
        kept = aside(folder)
        folder.rename(kept)
        logger.info("%s held a run: it is %s now", folder, kept)
    write_config(config, folder)
    write_json(folder / FILE, asdict(identity))


def aside(folder: Path) -> Path:
    """A free name beside a folder, of the moment of its last change."""
    moment = time.strftime("%Y%m%d-%H%M%S", time.localtime(folder.stat().st_mtime))
    path = folder.with_name(f"{folder.name}.{moment}")
    number = 1
    while path.exists():
        number += 1
        path = folder.with_name(f"{folder.name}.{moment}-{number}")
    return path
