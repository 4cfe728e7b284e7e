"""The public API, imported when it is first asked for: `import mm` alone loads neither torch nor anything heavy."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm.artifacts.run import Run, load_run
    from mm.batch import Batch
    from mm.data.domains.base import DomainAdapter
    from mm.infer.embedder import Embedder

__all__ = ["Batch", "DomainAdapter", "Embedder", "Run", "load", "load_run"]
WHERE = {
    "Batch": "mm.batch",
    "DomainAdapter": "mm.data.domains.base",
    "Embedder": "mm.infer.embedder",
    "Run": "mm.artifacts.run",
    "load_run": "mm.artifacts.run",
}


def load(folder: str) -> "Embedder":
    """A finished run's folder -> Embedder, with `encode_image`, `encode_audio`, `encode_text` and `match`."""
    from mm.infer.embedder import Embedder

    return Embedder.load(folder)


def __getattr__(name: str) -> Any:
    if name not in WHERE:
        raise AttributeError(f"module 'mm' has no attribute {name!r}")
    return getattr(import_module(WHERE[name]), name)
