"""One pass of its own beside torch's composition of it, every gradient too."""

import pytest
import torch
from torch.nn.functional import rms_norm as composed

from kernels.rms_norm import rms_norm


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("eps", [None, 1e-2])
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 4, 6)])
def test_value_and_gradients_are_torch_s(
    shape: tuple[int, ...], eps: float | None, weighted: bool, device: str
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, device=device, dtype=torch.float64)
    x[0] = 0  # the mean square of nothing
    weight = torch.randn(shape[-1], device=device, dtype=torch.float64) if weighted else None
    direction = torch.randn_like(x)
    found = []
    for function in (rms_norm, lambda x, weight, eps: composed(x, x.shape[-1:], weight, eps)):
        inputs = [t.clone().requires_grad_() for t in (x, weight) if t is not None]
        y = function(inputs[0], inputs[1] if weighted else None, eps)
        found.append([y.detach(), *torch.autograd.grad((y * direction).sum(), inputs)])
    torch.testing.assert_close(*found)


def test_narrow_inputs_keep_their_dtype(device: str) -> None:
    x = torch.randn(3, 8, device=device, dtype=torch.bfloat16)
    torch.testing.assert_close(rms_norm(x), composed(x, (8,)))
