"""ExecuTorch: a run's graphs as `.pte` programs for phones and boards, its large products given to XNNPACK.

Experts are dense, and linear layers: XNNPACK takes no other product of a weight. Whatever it does not take runs in
ExecuTorch's portable kernels.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

from mm.export.graph import Graph
from mm.optional import require

SUFFIX = ".pte"
EXTRA = "export"
PLANNED = Dim("batch", min=1, max=16)
"""Rows that a program takes: the memory of the most of them is planned, and held while it runs."""


def write_executorch(graph: Graph, folder: Path) -> Path:
    """One graph as a program.

    Args:
        graph: of a model that was prepared with dense experts.
        folder: where `<name>.pte` is written.

    Raises:
        UserError: executorch is not installed.
    """
    exir = require("executorch.exir", EXTRA)
    partitioner = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", EXTRA)
    # Its compiler of flat buffers is a program that the wheel puts beside Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # Its check of operations takes the length of the first part of every split, and so fixes a batch that varies.
    config = exir.EdgeCompileConfig(_check_ir_validity=False)
    with torch.no_grad():
        parts = [partitioner.XnnpackPartitioner()]
        edge = exir.to_edge_transform_and_lower(graph.program(), partitioner=parts, compile_config=config)
        program = edge.to_executorch()
    path = folder / f"{graph.name}{SUFFIX}"
    path.write_bytes(program.buffer)
    return path


def open_executorch(path: Path) -> Callable[..., tuple[Tensor, ...]]:
    """A program as a function of tensors, in the order of the graph's inputs -> its outputs.

    Raises:
        UserError: executorch is not installed.
    """
    runtime = require("executorch.runtime", EXTRA).Runtime.get()
    method = runtime.load_program(path).load_method("forward")

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(method.execute(inputs))

    return call
