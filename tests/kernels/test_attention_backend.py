"""Attention with padding masks, and across modalities, takes PyTorch's fused kernel, forward and backward; none is
home-made.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

B, HEADS, D = 2, 4, 32
FUSED = {
    "cpu": ("_flash_attention_for_cpu",),
    "cuda": ("_efficient_attention", "_flash_attention", "_cudnn_attention"),
}


def operators(query_length: int, key_length: int, mask: Tensor | None, dtype: torch.dtype, device: str) -> set[str]:
    """The names of every operator that ran, forward and backward."""
    query = torch.randn(B, HEADS, query_length, D, device=device, dtype=dtype, requires_grad=True)
    shape = (B, HEADS, key_length, D)
    key, value = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        F.scaled_dot_product_attention(query, key, value, attn_mask=mask).sum().backward()
    return {event.key for event in profiler.key_averages()}


def padding(lengths: list[int], key_length: int, device: str) -> Tensor:
    """(B, 1, 1, key_length) bool, True where a key is real."""
    return (torch.arange(key_length, device=device) < torch.tensor(lengths, device=device)[:, None])[:, None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("query_length", "key_length"), [(40, 40), (17, 50)], ids=["self", "cross"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
def test_the_fused_kernel_runs(
    masked: bool, query_length: int, key_length: int, dtype: torch.dtype, device: str
) -> None:
    mask = padding([key_length, key_length // 2], key_length, device) if masked else None
    ran = operators(query_length, key_length, mask, dtype, device)
    assert any(name in operator and "backward" not in operator for name in FUSED[device] for operator in ran), ran
    assert any(name in operator and "backward" in operator for name in FUSED[device] for operator in ran), ran
    assert not any("softmax" in operator for operator in ran), ran


def test_the_test_sees_the_unfused_path(device: str) -> None:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        ran = operators(8, 8, None, torch.float32, device)
    assert any("softmax" in operator for operator in ran)
