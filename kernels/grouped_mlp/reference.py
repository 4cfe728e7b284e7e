"""The definition of the grouped MLP: every expert in turn, the tokens routed to it, ordinary autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_mlp(x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """y_n = Σ_k weights[n, k] · w_out[e] (silu(g) * u), with [g; u] = w_in[e] x_n and e = indices[n, k].

    x (N, D), w_in (E, 2H, D), w_out (E, D, H), indices (N, K) int64, weights (N, K) -> (N, D) in x's dtype, summed in
    float32 at least.
    """
    total = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    for expert in range(w_in.shape[0]):
        token, slot = torch.where(indices == expert)
        gate, up = (x[token] @ w_in[expert].T).chunk(2, dim=-1)
        out = (F.silu(gate) * up) @ w_out[expert].T
        total = total.index_add(0, token, out.to(total.dtype) * weights[token, slot, None].to(total.dtype))
    return total.to(x.dtype)
