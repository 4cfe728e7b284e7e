"""`mm-align push`: a finished run or an adapter into a repository of a hub, in one commit."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from encoders.trunks import hugging_face_folder, require_transformers
from eval.fingerprint import Fingerprint
from kernels.errors import UserError
from kernels.parsing import parse_json
from mm.artifacts.adapter import DESCRIPTION, Adapted, is_adapter, read_adapted
from mm.artifacts.results import read_result
from mm.artifacts.run import TEXT, Run, load_run, with_adapter
from mm.artifacts.settings import read_text, read_yaml
from mm.compress.ledger import ledger
from mm.config import encoders_of
from mm.files import write_json
from mm.hub.card import Described, card
from mm.hub.client import hub, told
from mm.hub.contents import BASE, CARD, PEFT, READERS, RESULT, SEEN, SETTINGS, TENSORS, is_known, without_places
from mm.hub.pull import base_model_json, origin_of
from mm.hub.reference import SCHEME, Reference
from mm.modalities import build_readers


@dataclass(frozen=True)
class Staged:
    """What is about to be pushed: a folder of small files, and tensors by name where they lie."""

    folder: Path
    tensors: Mapping[str, Path]


def push(
    run: Path,
    repository: str,
    revision: str | None = None,
    private: bool = False,
    base: str | None = None,
    license: str = "apache-2.0",
) -> None:
    """Push a finished run, or an adapter, to a hub.

    Args:
        run: the folder of the run, or of the adapter.
        repository: org/name; it is made where it is not there.
        revision: a tag for this version, such as v1.
        private: whether a repository that is made is private.
        base: org/name[@revision] of what it was adapted from; an adapter of a pulled run knows it.
        license: of the weights, by its name on the hub.
    """
    target = Reference.of(repository)
    if target.revision is not None:
        raise UserError(f"{repository}: a version is named with --revision {target.revision}")
    result = _result_of(run)
    named = Reference.of(base) if base else None
    with tempfile.TemporaryDirectory(prefix="mm-push-") as place:
        folder = Path(place)
        if is_adapter(run):
            named = named or _base_of(run)
            loaded = _stage_adapter(run, folder, named)
        else:
            loaded = load_run(run)
            _stage_run(run, loaded, folder)
        _stage_words(run, folder, result)
        shown = Described(
            reference=replace(target, revision=revision),
            result=result,
            config=loaded.config,
            sizes=ledger(loaded.model),
            license=license,
            base=named,
            adapter=is_adapter(run),
        )
        (folder / CARD).write_text(card(shown))
        tensors = {name: run / name for name in TENSORS if (run / name).is_file()}
        _commit(target, Staged(folder, tensors), revision, private)


def _result_of(run: Path) -> dict[str, Any]:
    """result.json of a run; of an adapter, the one of its fine-tuning around it."""
    beside = run.parent / RESULT if is_adapter(run) and not (run / RESULT).is_file() else run / RESULT
    return read_result(beside)


def _base_of(adapter: Path) -> Reference:
    """The repository that an adapter's base was pulled from. Raises UserError where it was not."""
    local = read_adapted(adapter).base
    found = origin_of(local)
    if found is None:
        raise UserError(f"{adapter}: push its base {local} first, then name it: --base org/name")
    return found


def _stage_run(run: Path, loaded: Run, folder: Path) -> None:
    """model.json, config.yaml, the readers' settings, and the files of an hf/ trunk."""
    described = parse_json((run / "model.json").read_bytes(), "model.json")
    plain = without_places(json.loads(json.dumps(asdict(loaded.config))))
    write_json(folder / "model.json", described | {"config": plain})
    (folder / SETTINGS).write_text(yaml.safe_dump(plain, sort_keys=False))
    readers = build_readers(encoders_of(loaded.config))
    settings: dict[str, Any] = {modality: reader.settings() for modality, reader in readers.items()}
    if "text" in loaded.model.modalities:
        settings["text"] = {"tokenizer": plain["text"]["trunk"], "max_tokens": loaded.config.text.max_tokens}
        _stage_text(loaded.config.text.trunk, folder / TEXT)
    write_json(folder / READERS, settings)


def _stage_text(trunk: str, folder: Path) -> None:
    """Configuration and tokenizer of an hf/ trunk: who pulls the run needs neither its package nor another hub."""
    library, _, name = trunk.partition("/")
    if library != "hf":
        return
    transformers = require_transformers(trunk)
    source = hugging_face_folder(name)
    transformers.AutoConfig.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)


def _stage_adapter(adapter: Path, folder: Path, base: Reference) -> Run:
    """adapter.json, PEFT's settings, config.yaml and base.json; the run with the adapter, which has been checked on its
    own base and on the one in the repository.
    """
    adapted = read_adapted(adapter)
    run = load_run(adapted.base)
    commit, described = base_model_json(base)
    try:
        run.check_fingerprint(Fingerprint.of_json(described["fingerprint"]))
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{base} is not the base {adapted.base} of {adapter}: {error}") from error
    shutil.copyfile(adapter / DESCRIPTION, folder / DESCRIPTION)
    if (adapter / PEFT).is_file():  # an adapter of experts alone has none
        write_json(folder / PEFT, without_places(parse_json((adapter / PEFT).read_bytes(), PEFT)))
    write_json(folder / BASE, {"repository": base.repository, "revision": commit})
    _write_settings(adapter, folder, base)
    return with_adapter(run, adapter, Adapted(adapted.base, adapted.data, adapted.fit))


def _write_settings(adapter: Path, folder: Path, base: Reference) -> None:
    """config.yaml of the fine-tuning, whose `run` is the repository of the base."""
    own = adapter / SETTINGS if (adapter / SETTINGS).is_file() else adapter.parent / SETTINGS
    content = without_places(read_yaml(read_text(own), str(own)))
    (folder / SETTINGS).write_text(yaml.safe_dump(content | {"run": f"{SCHEME}{base}"}, sort_keys=False))


def _stage_words(run: Path, folder: Path, result: Mapping[str, Any]) -> None:
    """result.json and seen.json, without this machine's folders."""
    write_json(folder / RESULT, without_places(result))
    if (run / SEEN).is_file():
        write_json(folder / SEEN, without_places(parse_json((run / SEEN).read_bytes(), SEEN)), indent=None)


def _commit(target: Reference, staged: Staged, revision: str | None, private: bool) -> None:
    """Put all files there in one commit, which replaces those of an earlier version, and tag it."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files = {path.relative_to(staged.folder).as_posix(): path for path in staged.folder.rglob("*") if path.is_file()}
    files |= staged.tensors
    client = hub()
    with told(f"push {target}"):
        client.create_repo(target.repository, private=private, exist_ok=True)
        if revision and any(tag.name == revision for tag in client.list_repo_refs(target.repository).tags):
            raise UserError(f"push {target}: there is a version {revision} already; name another --revision")
        there = client.list_repo_files(target.repository)
        operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in sorted(files.items())]
        operations += [CommitOperationDelete(name) for name in there if is_known(name) and name not in files]
        done = client.create_commit(target.repository, operations, commit_message=f"Push of {revision or 'a version'}")
        if revision:
            client.create_tag(target.repository, tag=revision, revision=done.oid)
    size = sum(path.stat().st_size for path in files.values())
    print(
        f"pushed {replace(target, revision=revision)}: {len(files)} files, {size / 1e6:.1f} MB, commit {done.oid[:12]}"
    )
