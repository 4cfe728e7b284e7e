"""Other libraries' implementations of our operations, on our tensors: what `kernels.bench` compares with.

A library is imported where its peer is built. One that is not installed is named in the log and has no peer.
"""

import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import compute_dtype
from kernels.timing import Run

log = logging.getLogger("kernels")

Routed = Callable[[Tensor], Any]
"""Experts as a function of the routing (N, K) int64."""


def installed(package: str) -> bool:
    """Whether the package can be imported; where not, it is named in the log, once."""
    found = importlib.util.find_spec(package) is not None
    if not found:
        _name_skipped(package)
    return found


@cache
def _name_skipped(package: str) -> None:
    log.warning("%s is not installed: skipped", package)


def torch_experts(w_in: Tensor, w_out: Tensor, x: Tensor, weights: Tensor) -> dict[str, Routed]:
    """Experts in a dozen lines of torch around its grouped product, eager and compiled: what one would write without
    this library.

    w_in (E, 2H, D), w_out (E, D, H), x (N, D), weights (N, K) -> implementations by name.
    """
    torch.compiler.reset()  # else earlier sizes count against the number of times that a function is compiled
    compiled = torch.compile(_torch_experts, dynamic=False)
    return {
        "torch_grouped_mm": lambda indices: _torch_experts(x, w_in, w_out, indices, weights),
        "torch_compiled": lambda indices: compiled(x, w_in, w_out, indices, weights),
    }


def _torch_experts(x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    dtype = compute_dtype(x)
    x, w_in, w_out, weights = (tensor.to(dtype) for tensor in (x, w_in, w_out, weights))
    expert, order = indices.flatten().sort(stable=True)
    ends = torch.searchsorted(expert, torch.arange(1, w_in.shape[0] + 1, device=x.device)).to(torch.int32)
    token = order // indices.shape[1]
    gate, up = F.grouped_mm(x[token], w_in.mT, offs=ends).chunk(2, dim=-1)
    rows = F.grouped_mm(F.silu(gate) * up, w_out.mT, offs=ends)
    rows = rows * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, token, rows)


def qwen3_experts(w_in: Tensor, w_out: Tensor, x: Tensor, weights: Tensor) -> dict[str, Routed]:
    """transformers' Qwen3-MoE experts with our weights as their parameters.

    w_in (E, 2H, D), w_out (E, D, H), x (N, D), weights (N, K) -> implementations by name.
    """
    if not installed("transformers"):
        return {}
    return {
        "transformers_eager": _qwen3_experts("eager", w_in, w_out, x, weights),
        "transformers_grouped_mm": _qwen3_experts("grouped_mm", w_in, w_out, x, weights),
    }


def _qwen3_experts(kind: str, w_in: Tensor, w_out: Tensor, x: Tensor, weights: Tensor) -> Routed:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    num_experts, width, hidden = w_out.shape
    config = Qwen3MoeConfig(hidden_size=width, moe_intermediate_size=hidden, num_experts=num_experts)
    config._experts_implementation = kind
    with torch.device("meta"):
        experts = Qwen3MoeExperts(config)
    experts.gate_up_proj = torch.nn.Parameter(w_in)
    experts.down_proj = torch.nn.Parameter(w_out)
    return lambda indices: experts(x, indices, weights)


def vector_quantize(z: Tensor, codebook: Tensor, metric: str, training: bool) -> dict[str, Run]:
    """vector-quantize-pytorch with our codebook, its EMA update included where it trains: z (N, C), codebook (S, C)."""
    if not installed("vector_quantize_pytorch"):
        return {}
    from vector_quantize_pytorch import VectorQuantize

    library = VectorQuantize(
        dim=z.shape[1], codebook_size=codebook.shape[0], decay=0.99, use_cosine_sim=metric == "cosine"
    )
    library.to(z.device)
    library._codebook.embed.data.copy_(codebook[None])
    library.train(training)
    batch = z[None]

    def step() -> Any:
        with torch.set_grad_enabled(training):
            return library(batch)

    return {"vector_quantize_pytorch": step}


def open_clip_info_nce(a: Tensor, b: Tensor, scale: Tensor) -> dict[str, Run]:
    """open_clip's ClipLoss: a, b (B, D), scale ()."""
    if not installed("open_clip"):
        return {}
    from open_clip.loss import ClipLoss

    loss = ClipLoss()
    return {"open_clip": lambda: loss(a, b, scale)}


def open_clip_sigmoid(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> dict[str, Run]:
    """open_clip's SigLipLoss: a, b (B, D), scale (), bias ()."""
    if not installed("open_clip"):
        return {}
    from open_clip.loss import SigLipLoss

    loss = SigLipLoss()
    return {"open_clip": lambda: loss(a, b, scale, bias)}
