"""seen.json of a run: every set that it was trained on, from the first of the runs that it goes back to."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kernels.errors import UserError
from kernels.parsing import parse_json
from mm.artifacts.adapter import is_adapter, read_adapted
from mm.data.collection import Collection
from mm.data.config import DataConfig
from mm.files import write_json

FILE = "seen.json"


def save_seen(collections: Sequence[Collection], folder: Path) -> None:
    """Write seen.json into the folder of a run or of an adapter.

    Args:
        collections: those of its base first, if it has one.
        folder: is made where it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = [asdict(each) | {"items": sorted(each.items)} for each in collections]
    write_json(folder / FILE, content, indent=None)


def load_seen(folder: Path, data: DataConfig) -> list[Collection]:
    """The sets that a run was trained on.

    Args:
        folder: of the run, or of an adapter.
        data: settings of its own set: what is known of a run without seen.json.

    Raises:
        ValueError: the file is another one.
    """
    path = folder / FILE
    if path.is_file():
        try:
            content = parse_json(path.read_bytes(), "it")
            if not content:
                raise UserError("it lists none")
            return [Collection(**each | {"items": frozenset(each["items"])}) for each in content]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is not a run's list of sets: {type(error).__name__} {error}") from error
    if is_adapter(folder):
        base = read_adapted(folder).base
        return [*load_seen(base, data), Collection.of(data)]
    return [Collection.of(data)]


def trained_on(collections: Sequence[Collection]) -> str:
    """Their names, in the words of a protocol: `scenes/train, molecules/train`."""
    return ", ".join(dict.fromkeys(each.name for each in collections))
