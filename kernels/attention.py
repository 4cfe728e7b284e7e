"""Attention: `scaled_dot_product_attention`, in the dtype in which its fused path is fast.

On a processor without AMX torch's fused bf16 path multiplies in scalars: (128, 4, 64, 32) forward and backward took
98 ms in bf16 against 30 ms in fp32 on one core of an AVX-512 machine. With AMX its backward does: (24, 4, 64, 32) took
22 ms against 3 on one core. On a CPU without AMX fp32 is taken whatever the autocast, with AMX where gradients are
recorded; everywhere else the dtype is autocast's.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.dispatch import compute_dtype


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D); mask (B, S) or (B, T or 1, S) bool of the keys that count
    (None: all).

    bias (B, H, 1, S) is added to the logits; where it is trained, torch takes its unfused path.
    """
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    scalar = q.device.type == "cpu" and (trains or not torch.cpu._is_amx_tile_supported())
    dtype = torch.float32 if scalar else compute_dtype(q)
    attn_mask = None
    if mask is not None:
        attn_mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
    with torch.autocast(q.device.type, enabled=False):
        if bias is not None:
            hidden = bias.to(dtype)
            attn_mask = hidden if attn_mask is None else hidden.masked_fill(~attn_mask, -torch.inf)
        return scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype), attn_mask=attn_mask)
