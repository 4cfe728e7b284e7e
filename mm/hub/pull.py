"""`mm-align pull` and `mm.load("hf://…")`: a repository's files fetched, checked and loaded; nothing is executed.

What is fetched lies in the hub's own cache, where an interrupted download goes on, and from where it is loaded without
a connection. A folder that is asked for is made once everything is there and has passed its checks.
"""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kernels.errors import UserError
from kernels.parsing import parse_json
from mm.artifacts.adapter import is_adapter, read_adapted
from mm.artifacts.run import Run, load_run, with_adapter
from mm.artifacts.settings import read_text, read_yaml
from mm.files import private_name, write_json
from mm.hub.client import hub, is_out_of_reach, reason, told
from mm.hub.contents import BASE, PATTERNS, SETTINGS, check_folder, check_names
from mm.hub.reference import Reference, is_reference

logger = logging.getLogger(__name__)
RUNS = Path("runs")
"""Where runs are pulled, if nothing else is said."""
ORIGIN = "hub.json"
"""In a pulled folder: the repository and the commit that it was."""


@dataclass(frozen=True)
class Fetched:
    """A repository's files in the cache, checked: `at` names the commit."""

    at: Reference
    folder: Path


def pull(repository: str, out: Path | None = None) -> None:
    """Pull a run, or an adapter with its base, from a hub.

    Args:
        repository: org/name, or org/name@revision of a version: a tag, a branch or a commit.
        out: the folder that is made; by default runs/<name>.
    """
    reference = Reference.of(repository)
    folder = out or RUNS / reference.name
    if folder.exists():
        raise UserError(f"{folder} is there already: move it, or name another --out")
    _place(fetch(reference), folder)


def folder_of_run(run: str, runs: Path) -> Path:
    """The folder of a run, for commands that read it or write beside it.

    Args:
        run: a folder, which is returned as it is; or hf://org/name[@revision], pulled once for each version.
        runs: folder of all runs, where it is pulled into <name>-<commit>.

    Returns:
        the folder.

    Raises:
        ValueError: the repository cannot be pulled, or the folder holds something else.
    """
    if not is_reference(run):
        return Path(run)
    fetched = fetch(Reference.of(run))
    folder = runs / f"{fetched.at.name}-{str(fetched.at.revision)[:12]}"
    if not folder.exists():
        _place(fetched, folder)
    elif origin_of(folder) != fetched.at:
        raise UserError(f"{folder} is not {fetched.at}: move it, so that the repository can be pulled there")
    return folder


def _place(fetched: Fetched, folder: Path) -> None:
    """Make a folder of what was fetched, once it loads."""
    load_fetched(fetched)
    unfinished = private_name(folder)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        _copy(fetched, unfinished, folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"pulled {fetched.at} into {folder}")


def load_from_hub(reference: Reference) -> Run:
    """Fetch and load a run, or an adapter merged into its base. Raises ValueError as `fetch` and `load_fetched` do."""
    return load_fetched(fetch(reference))


def load_fetched(fetched: Fetched, waiting: tuple[Reference, ...] = ()) -> Run:
    """Load what was fetched, checked to behave as when it was saved.

    Args:
        fetched: a run, or an adapter, whose base is fetched.
        waiting: adapters whose base this is.

    Returns:
        the run in evaluation mode.

    Raises:
        ValueError: it is damaged, or its base is not there.
    """
    try:
        if not is_adapter(fetched.folder):
            return load_run(fetched.folder)
        base = base_of(fetched)
        if base in waiting:
            raise UserError(f"its base {base} is an adapter of its own")
        run = load_fetched(fetch(base), (*waiting, base))
        return with_adapter(run, fetched.folder, read_adapted(fetched.folder))
    except UserError as error:
        raise UserError(
            f"{fetched.at} is not what was pushed, or its copy is damaged (remove {fetched.folder} and pull again):"
            f" {error}"
        ) from error


def fetch(reference: Reference) -> Fetched:
    """Fetch a repository's files into the cache, or find them there without a connection.

    Raises:
        ValueError: there is no such repository or revision, it is out of reach and not in the cache, or is refused.
    """
    _check_listing(reference)
    with told(f"pull {reference}"):
        place = hub().snapshot_download(
            reference.repository, revision=reference.revision, allow_patterns=list(PATTERNS)
        )
    folder = Path(str(place))
    check_folder(folder, str(reference))
    return Fetched(Reference(reference.repository, folder.name), folder)


def _check_listing(reference: Reference) -> None:
    """Check the names of a repository's files before any is fetched; out of reach of the hub the cache must do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError

    if constants.HF_HUB_OFFLINE:
        return
    with told(f"pull {reference}"):
        try:
            found = hub().model_info(reference.repository, revision=reference.revision)
        except (HTTPError, OSError) as error:
            if not is_out_of_reach(error):
                raise
            logger.warning("%s: %s; its copy in the cache is used, if there is one", reference, reason(error))
            return
    check_names([file.rfilename for file in found.siblings or ()], str(reference))


def base_of(fetched: Fetched) -> Reference:
    """The repository and commit of an adapter's base. Raises UserError where base.json does not say."""
    path = fetched.folder / BASE
    if not path.is_file():
        raise UserError(f"it is an adapter and has no {BASE}, which names its base")
    content = parse_json(path.read_bytes(), BASE)
    try:
        return Reference.of(f"{content['repository']}@{content['revision']}")
    except (KeyError, TypeError) as error:
        raise UserError(f"{BASE} names no base: {type(error).__name__} {error}") from error


def base_model_json(base: Reference) -> tuple[str, dict[str, Any]]:
    """The commit of a run in a repository, and its model.json.

    Raises:
        ValueError: it is out of reach, or holds no run.
    """
    client = hub()
    with told(f"read the base {base}"):
        commit = client.model_info(base.repository, revision=base.revision).sha
        path = client.hf_hub_download(base.repository, "model.json", revision=commit)
    return str(commit), parse_json(Path(str(path)).read_bytes(), f"model.json of {base}")


def origin_of(folder: Path) -> Reference | None:
    """The repository that a folder was pulled from, None of any other."""
    path = folder / ORIGIN
    if not path.is_file():
        return None
    content = parse_json(path.read_bytes(), str(path))
    return Reference.of(f"{content['repository']}@{content['revision']}")


def _copy(fetched: Fetched, folder: Path, final: Path) -> None:
    """Copy a repository's files, and those of an adapter's base into `base` beside them.

    Args:
        fetched: what is in the cache.
        folder: is made.
        final: what the folder will be called.
    """
    for path in sorted(fetched.folder.rglob("*")):
        if path.is_file():
            target = folder / path.relative_to(fetched.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    write_json(folder / ORIGIN, {"repository": fetched.at.repository, "revision": fetched.at.revision})
    if is_adapter(fetched.folder):
        inner = final / "base"
        _copy(fetch(base_of(fetched)), folder / inner.name, inner)
        settings = read_yaml(read_text(folder / SETTINGS), SETTINGS)
        (folder / SETTINGS).write_text(yaml.safe_dump(settings | {"run": str(inner)}, sort_keys=False))
