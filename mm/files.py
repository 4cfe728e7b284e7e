"""JSON files that a killed process never leaves half written, and names that stay in their folder."""

import json
from pathlib import Path, PurePosixPath
from typing import Any


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Atomic: what was there stays until the new file is whole. Makes the folder; `indent` None for what only programs
    read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content, indent=indent) + "\n")
    temporary.replace(path)


def leaves_folder(name: str) -> bool:
    """Whether a file name that was read from data would lead out of the folder it is joined to, on any system."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return True
    return "\\" in name or ":" in name
