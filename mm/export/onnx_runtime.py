"""ONNX Runtime: a run's graphs as ONNX files, its experts as the operator that the runtime has for them.

`com.microsoft::MoE` computes only the experts that a token is sent to. It softmaxes what it is given as the router's
logits: of the logarithms of our routing weights that gives the weights back, whatever the router is.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kernels.errors import UserError
from mm.export.graph import Graph
from mm.model.moe import MoE
from mm.optional import require

NOT_CHOSEN = -30000.0
"""The logit of an expert that a token is not sent to: its softmax is zero in any precision."""
SMALLEST_WEIGHT = 1e-30
"""Below a routing weight that means anything, and above what has no logarithm."""
OPSET = 20


class OnnxExperts(nn.Module):
    """The experts as one node of ONNX Runtime's; outside of an export it computes nothing.

    Args:
        moe: whose weights they are.
        name: of it.
    """

    w_in: Tensor
    w_out: Tensor

    def __init__(self, moe: MoE, name: str) -> None:
        super().__init__()
        self.top_k = moe.config.top_k
        self.num_experts = moe.config.num_experts
        self.register_buffer("w_in", interleaved(moe.w_in.detach()))
        self.register_buffer("w_out", moe.w_out.detach())

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x (N, D), chosen (N, K) int64, weights (N, K) -> (N, D)."""
        logits = router_logits(chosen, weights, self.num_experts)
        inputs = (x, logits, self.w_in, None, self.w_out, None)
        return torch.onnx.ops.symbolic(
            "com.microsoft::MoE", inputs, routing(self.top_k), dtype=x.dtype, shape=x.shape, version=1
        )


def routing(top_k: int) -> dict[str, Any]:
    """Attributes of a node of experts: SwiGLU without a limit, its rows interleaved, weights as they come."""
    return {
        "k": top_k,
        "activation_type": "swiglu",
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": 0,
        # 0 and 2 are refused when a session is made.
        "swiglu_fusion": 1,
    }


def router_logits(chosen: Tensor, weights: Tensor, num_experts: int) -> Tensor:
    """chosen (N, K) int64, weights (N, K) that sum to one -> logits (N, E) whose softmax are the weights."""
    nothing = torch.full((chosen.shape[0], num_experts), NOT_CHOSEN, dtype=weights.dtype)
    return nothing.scatter(1, chosen, weights.clamp(min=SMALLEST_WEIGHT).log())


def interleaved(w_in: Tensor) -> Tensor:
    """Experts (E, 2H, …) with all gate rows first -> gate and up rows in turn, as ONNX Runtime has them."""
    gate, up = w_in.chunk(2, 1)
    return torch.stack([gate, up], 2).flatten(1, 2).contiguous()


def write_onnx(graph: Graph, folder: Path) -> Path:
    """One graph as a file of ONNX, with its weights in it.

    Args:
        graph: of a model that was prepared with this engine's experts.
        folder: where `<name>.onnx` is written.

    Raises:
        UserError: a package of the extra `export` is not installed.
    """
    require("onnx", "export")
    require("onnxscript", "export")
    path = folder / f"{graph.name}.onnx"
    program = torch.onnx.export(
        graph.program(),
        input_names=list(graph.named()),
        output_names=list(graph.outputs),
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)
    return path


def open_onnx(path: Path, threads: int = 1) -> Callable[..., list[np.ndarray]]:
    """A file of ONNX as a function of tensors, in the order of the graph's inputs -> arrays, its outputs.

    Args:
        path: of the file.
        threads: of the CPU that it computes with.

    Raises:
        UserError: onnxruntime is not installed, or lacks an operator of the file.
    """
    runtime = require("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime's own classes: a node it does not know is NotImplemented, one that it does not take is Fail.
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise UserError(f"onnxruntime {runtime.__version__} does not take {path.name}: {error}") from error
    names = [each.name for each in session.get_inputs()]

    def call(*inputs: Tensor) -> list[np.ndarray]:
        return session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})

    return call
