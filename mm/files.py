"""JSON files that a killed process never leaves half written."""

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Atomic: what was there stays until the new file is whole. Makes the folder; `indent` None for what only programs
    read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content, indent=indent) + "\n")
    temporary.replace(path)
