"""The public API, imported when it is first asked for: `import mm` alone loads neither torch nor anything heavy."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from os import PathLike

    from mm.artifacts.run import Run, load_run
    from mm.batch import Batch
    from mm.data.domains.base import DomainAdapter
    from mm.infer.base import BaseEmbedder
    from mm.infer.embedder import Embedder
    from mm.infer.index import Index

__all__ = ["Batch", "DomainAdapter", "Embedder", "Index", "Run", "load", "load_run"]
WHERE = {
    "Batch": "mm.batch",
    "DomainAdapter": "mm.data.domains.base",
    "Embedder": "mm.infer.embedder",
    "Index": "mm.infer.index",
    "Run": "mm.artifacts.run",
    "load_run": "mm.artifacts.run",
}


def load(name: "str | PathLike[str]", device: str = "auto") -> "BaseEmbedder":
    """Load a model that makes vectors: `encode_image`, `encode_audio`, `encode_text`, `similarity`, `match`, `codes`.

    Args:
        name: the folder of a finished run, `hf://org/name[@revision]` on a hub, `open_clip/<model>:<tag or file>` or
            `timm/<model>[:<file>]`.
        device: auto is the GPU where there is one; or a device as torch names it.

    Raises:
        ValueError: there is no such model, it cannot be loaded, or there is no such device.
    """
    from mm.infer.loading import load

    return load(name, device)


def __getattr__(name: str) -> Any:
    if name not in WHERE:
        raise AttributeError(f"module 'mm' has no attribute {name!r}")
    return getattr(import_module(WHERE[name]), name)
