"""AOTInductor: a run's graphs compiled to machine code, a `.pt2` package that C++ and Python load without the model.

It compiles for minutes; experts are dense, since the sparse operation is Python.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mm.export.graph import Graph

SUFFIX = ".pt2"


def write_aoti(graph: Graph, folder: Path) -> Path:
    """One graph as a package.

    Args:
        graph: of a model that was prepared with dense experts.
        folder: where `<name>.pt2` is written.
    """
    path = folder / f"{graph.name}{SUFFIX}"
    torch._inductor.aoti_compile_and_package(graph.program(), package_path=str(path))
    return path


def open_aoti(path: Path) -> Callable[..., tuple[Tensor, ...]]:
    """A package as a function of tensors, in the order of the graph's inputs -> its outputs."""
    loaded = torch._inductor.aoti_load_package(str(path))

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        found = loaded(*inputs)
        return found if isinstance(found, tuple) else (found,)

    return call
