"""The cases and the comparison that the parity tests and the benchmark share.

A case makes the tensors of one call from a seed; `relative_errors` runs two implementations on them and compares the
output and the gradient of every tensor that has one. The implementation under test computes in the case's dtype, the
reference in float32 at least on the same (rounded) numbers, so that an error is a rounding error and has a size one
can justify.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# Relative L2 error: a few roundings of the dtype, for sums of up to a few hundred terms kept in float32 or wider.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

Routing = Literal["random", "one expert", "half idle", "falling", "repeated"]


@dataclass(frozen=True)
class GroupedMLPCase:
    """N tokens to K of E experts of hidden width H at width D; ``routing`` says how evenly."""

    tokens: int
    num_experts: int
    top_k: int
    width: int
    hidden: int
    routing: Routing = "random"

    def inputs(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
        """x (N, D), w_in (E, 2H, D), w_out (E, D, H), indices (N, K), weights (N, K)."""
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(self.tokens, self.width, generator=g)
        w_in = torch.randn(self.num_experts, 2 * self.hidden, self.width, generator=g) / self.width**0.5
        w_out = torch.randn(self.num_experts, self.width, self.hidden, generator=g) / self.hidden**0.5
        weights = torch.rand(self.tokens, self.top_k, generator=g).softmax(-1)
        indices = self.indices(g)
        x, w_in, w_out, weights = (tensor.to(device, dtype) for tensor in (x, w_in, w_out, weights))
        return x, w_in, w_out, indices.to(device), weights

    @property
    def operations(self) -> int:
        """Floating-point operations of the products of a forward pass; a backward pass has twice as many."""
        return 6 * self.tokens * self.top_k * self.width * self.hidden

    def indices(self, generator: torch.Generator) -> Tensor:
        """(N, K) int64."""
        if self.routing in ("one expert", "repeated"):
            only = self.num_experts - 1 if self.routing == "one expert" else 0
            return torch.full((self.tokens, self.top_k), only)
        score = torch.randn(self.tokens, self.num_experts, generator=generator)
        if self.routing == "half idle":
            score[:, ::2] = -torch.inf
        if self.routing == "falling":
            score -= torch.arange(self.num_experts) * (4 / self.num_experts)
        return score.topk(self.top_k).indices


@dataclass(frozen=True)
class NearestCodeCase:
    """N vectors of width C against S codes."""

    vectors: int
    num_codes: int
    width: int

    def inputs(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor]:
        """z (N, C), codebook (S, C)."""
        g = torch.Generator().manual_seed(seed)
        z = torch.randn(self.vectors, self.width, generator=g)
        codebook = torch.randn(self.num_codes, self.width, generator=g)
        return z.to(device, dtype), codebook.to(device, dtype)


@dataclass(frozen=True)
class ContrastiveCase:
    """B pairs of width D; ``identities`` below B gives some pairs equal ids, 0 gives no ids."""

    pairs: int
    width: int
    identities: int = 0

    def inputs(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> tuple[Tensor, ...]:
        """a (B, D), b (B, D), scale (), bias (): unit vectors, half of the pairs close."""
        g = torch.Generator().manual_seed(seed)
        a, noise = torch.randn(2, self.pairs, self.width, generator=g)
        b = noise.clone()
        b[::2] += 2 * a[::2]
        a, b = (F.normalize(side, dim=-1).to(device, dtype) for side in (a, b))
        scale = torch.tensor(20.0, device=device)
        bias = torch.tensor(-6.0, device=device)
        return a, b, scale, bias

    def ids(self, device: str = "cpu", seed: int = 0) -> Tensor | None:
        """(B,) int64, or None."""
        if not self.identities:
            return None
        g = torch.Generator().manual_seed(seed)
        return torch.randint(self.identities, (self.pairs,), generator=g).to(device)


GROUPED_MLP_CASES = {
    "odd sizes": GroupedMLPCase(67, 7, 3, 40, 24),
    "one token": GroupedMLPCase(1, 4, 2, 16, 8),
    "no tokens": GroupedMLPCase(0, 4, 2, 16, 8),
    "all tokens on one expert": GroupedMLPCase(65, 5, 1, 24, 16, "one expert"),
    "experts without tokens": GroupedMLPCase(50, 8, 2, 24, 16, "half idle"),
    "falling load": GroupedMLPCase(90, 6, 2, 16, 24, "falling"),
    "an expert named twice": GroupedMLPCase(9, 3, 2, 16, 8, "repeated"),
    "every expert active": GroupedMLPCase(20, 4, 4, 16, 16),
}
NEAREST_CODE_CASES = {
    "odd sizes": NearestCodeCase(101, 77, 19),
    "one vector": NearestCodeCase(1, 50, 8),
    "one code": NearestCodeCase(30, 1, 8),
    "no vectors": NearestCodeCase(0, 10, 8),
    "codes a multiple of the fold": NearestCodeCase(70, 512, 16),
    "wide": NearestCodeCase(10, 90, 300),
}
CONTRASTIVE_CASES = {
    "odd size": ContrastiveCase(67, 24),
    "one pair": ContrastiveCase(1, 16),
    "equal ids": ContrastiveCase(70, 24, 9),
    "one identity": ContrastiveCase(10, 16, 1),
}


def relative_errors(
    ours: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: tuple[Tensor, ...], *, seed: int = 1
) -> dict[str, float]:
    """|ours - reference| / |reference| (L2) of the output and of the gradient of every floating input, by position.

    Both get ``inputs``; the reference gets the floating ones in float32 at least. The gradient of the output is random.
    """
    wide = tuple(_widened(tensor) for tensor in inputs)
    outputs = _run(ours, inputs, seed)
    expected = _run(reference, wide, seed)
    return {name: relative_error(outputs[name], expected[name]) for name in expected}


def relative_error(value: Tensor, expected: Tensor) -> float:
    """|value - expected| / |expected|, L2 in float64; the absolute error where expected is zero; infinite where a value
    is none, as the largest of several errors must be (max() passes over NaN). Shapes must agree.
    """
    if value.shape != expected.shape:
        raise AssertionError(f"shape {tuple(value.shape)} where the reference has {tuple(expected.shape)}")
    error = (value.double() - expected.double()).norm()
    size = expected.double().norm()
    relative = float(error / size if size > 0 else error)
    return math.inf if math.isnan(relative) else relative


def _run(op: Callable[..., Tensor], inputs: tuple[Tensor, ...], seed: int) -> dict[str, Tensor]:
    leaves = tuple(tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor for tensor in inputs)
    output = op(*leaves)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    output.backward(grad.to(output.device, output.dtype))
    results = {"output": output.detach()}
    for position, leaf in enumerate(leaves):
        if leaf.is_floating_point():
            results[f"gradient {position}"] = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
    return results


def _widened(tensor: Tensor) -> Tensor:
    wide = tensor.is_floating_point() and tensor.dtype.itemsize < 4
    return tensor.float() if wide else tensor
