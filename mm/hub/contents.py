"""What a repository may hold: tensors as safetensors, and settings as JSON, YAML and text. Whatever would be executed
is refused, in the listing before anything is fetched and in the files before anything is loaded.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from encoders.trunks import original
from kernels.errors import UserError
from kernels.parsing import parse_json
from mm.artifacts.adapter import DESCRIPTION, EXPERTS, LINEAR
from mm.artifacts.run import TEXT
from mm.artifacts.seen import FILE as SEEN
from mm.artifacts.settings import CLASS, read_text, read_yaml
from mm.files import leaves_folder

CARD = "README.md"
SETTINGS = "config.yaml"
RESULT = "result.json"
READERS = "preprocessor.json"
"""How inputs are read, for people and other programs: the settings of a run say the same."""
BASE = "base.json"
"""Of an adapter: the repository and the commit of its base."""
TENSORS = ("model.safetensors", LINEAR, EXPERTS)
PEFT = "adapter_config.json"
FILES = frozenset((*TENSORS, DESCRIPTION, PEFT, BASE, "model.json", READERS, CARD, SETTINGS, RESULT, SEEN))
TEXT_KINDS = (".json", ".txt", ".model")
"""Suffixes of files of tokenizers."""
PATTERNS = (*sorted(FILES), *(f"{TEXT}/*{kind}" for kind in TEXT_KINDS))
"""What is fetched."""
CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".ipynb", ".whl", ".egg", ".exe", ".js")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".keras", ".msgpack")
ASKS_FOR_CODE = ("auto_map", "trust_remote_code", "custom_pipelines", CLASS)
"""Keys under which libraries look for a class to import."""


def check_names(names: Iterable[str], source: str) -> list[str]:
    """Which of a repository's files are read; the others are left where they are.

    Args:
        names: of all files.
        source: names the repository in an error.

    Raises:
        ValueError: a name leads out of the folder, or the repository holds code or pickles.
    """
    wanted = []
    for name in sorted(names):
        suffix = PurePosixPath(name).suffix.lower()
        if leaves_folder(name):
            raise UserError(f"{source} is refused: the name {name!r} leads out of its folder")
        if suffix in CODE:
            raise UserError(f"{source} is refused: it holds code ({name}), and nothing of a repository is executed")
        if suffix in PICKLES:
            raise UserError(f"{source} is refused: {name} may hold pickles, which execute code; safetensors do not")
        if is_known(name):
            wanted.append(name)
    return wanted


def is_known(name: str) -> bool:
    """Whether a file is one of those that are pushed."""
    path = PurePosixPath(name)
    return name in FILES or (path.parts[:-1] == (TEXT,) and path.suffix in TEXT_KINDS)


def check_folder(folder: Path, source: str) -> None:
    """Check a fetched repository's files by name and content.

    Args:
        folder: of the files.
        source: names the repository in an error.

    Raises:
        ValueError: it holds neither a run nor an adapter, or what would be executed.
    """
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    known = check_names(names, source)
    if "model.json" not in known and DESCRIPTION not in known:
        raise UserError(f"{source} holds neither a run (model.json) nor an adapter ({DESCRIPTION}) of mm-align")
    for name in known:
        content = _content(folder / name)
        asked = next((key for key in keys_in(content) if key in ASKS_FOR_CODE), None)
        if asked is not None:
            raise UserError(f"{source} is refused: {name} asks for code ({asked}), and nothing of it is executed")


def _content(path: Path) -> Any:
    """The values of a file of settings, None of any other."""
    if path.suffix == ".json":
        return parse_json(path.read_bytes(), str(path))
    if path.suffix == ".yaml":
        return read_yaml(read_text(path), str(path))
    return None


def keys_in(content: Any) -> Iterator[str]:
    """All keys of nested values; the tables of a tokenizer, whose keys are words, are not looked into."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key not in ("vocab", "merges", "added_tokens_decoder"):
                yield str(key)
                yield from keys_in(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from keys_in(value)


def without_places(values: Any) -> Any:
    """Nested settings in which paths of this machine are no more than their last names."""
    if isinstance(values, Mapping):
        return {key: without_places(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [without_places(value) for value in values]
    if not isinstance(values, str):
        return values
    values = original(values)
    library, slash, place = values.partition("/")
    if library == "hf" and slash and Path(place).is_absolute():
        return f"hf/{Path(place).name}"
    return Path(values).name if Path(values).is_absolute() or values.startswith("~") else values
