"""Sparse mixture of experts: fp32 router, top-K of E, balanced by a bias and not by a loss.

Routing follows DeepSeek-V3 (2024): sigmoid affinities, the K highest of affinity + bias are chosen, the chosen
affinities (without bias) are normalised into weights; the bias moves a little after every step, against the load
(Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing"). Optional losses: load balance (Switch, Fedus et al. 2021),
router z (ST-MoE, Zoph et al. 2022), modality entropy (LIMoE, Mustafa et al. 2022).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from kernels.collectives import Group, joint_mean, joint_sum, step_group, sum_over_ranks
from kernels.errors import UserError
from kernels.grouped_mlp import grouped_mlp
from kernels.padding import count_of
from kernels.ranges import check_ranges

EXPERT_WEIGHTS = ("w_in", "w_out")
"""Last names of the parameters that hold all experts of a MoE: (E, 2H, D) and (E, D, H)."""
ROUTER_LOSSES = ("z", "balance", "entropy")
"""Names of the router's losses, whose weights `MoEConfig` has."""


@dataclass(frozen=True)
class MoEConfig:
    """Experts and their router."""

    num_experts: Annotated[int, "[1, inf)"] = 128
    """Routed experts, E."""
    top_k: Annotated[int, "[1, inf)"] = 8
    """Experts each token is sent to, K."""
    hidden: Annotated[int, "[1, inf)"] = 32
    """Hidden width of one expert, H."""
    shared: Annotated[int, "[0, inf)"] = 128
    """Hidden width of the expert that every token passes; 0 for none."""
    bias_rate: Annotated[float, "[0, inf)"] = 0.01
    """How far the balancing bias moves per step, against the sign of the overload."""
    balance: Annotated[float, "[0, inf)"] = 0.0
    """Weight of the Switch load-balance loss."""
    z: Annotated[float, "[0, inf)"] = 1e-3
    """Weight of the router z loss."""
    entropy: Annotated[float, "[0, inf)"] = 0.0
    """Weight of the modality entropy losses: sharp routing per token, spread routing per modality."""

    def __post_init__(self) -> None:
        check_ranges(self, "model.backbone.moe")
        if not 1 <= self.top_k <= self.num_experts:
            raise UserError(
                f"moe.top_k={self.top_k} of moe.num_experts={self.num_experts}: need 1 <= top_k <= num_experts"
            )


@dataclass
class MoEOutput:
    """What the experts return.

    Args:
        x: tokens (N, D).
        losses: the router's, weighted, by name.
        load: (M, E) float32, how many assignments each expert got from each modality.
    """

    x: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    load: Tensor | None = None


register_dataclass(MoEOutput)


class Router(nn.Module):
    """Choose K of E experts for every token (N, D), and weigh them.

    Args:
        config: number of experts and of choices.
        width: D, of a token.
    """

    bias: Tensor

    def __init__(self, config: MoEConfig, width: int) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.affinity = nn.Parameter(torch.randn(config.num_experts, width) * width**-0.5)
        self.register_buffer("bias", torch.zeros(config.num_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Route tokens in fp32, whatever the autocast.

        Args:
            x: tokens (N, D).

        Returns:
            chosen experts (N, K) int64, their weights (N, K) fp32 that sum to 1, affinity logits (N, E) fp32.
        """
        with torch.autocast(x.device.type, enabled=False):
            logits = x.float() @ self.affinity.float().T
            affinity = logits.sigmoid()
            biased = affinity.detach() + self.bias
            chosen = biased.topk(self.top_k, dim=1).indices
            weights = affinity.gather(1, chosen)
            total = weights.sum(1, keepdim=True).clamp(min=1e-9)
            return chosen, weights / total, logits

    @torch.no_grad()
    def rebalance(self, load: Tensor, rate: float) -> None:
        """Move the bias of overloaded experts down and of idle ones up.

        Args:
            load: (E,), the step's assignments to each expert, over all ranks.
            rate: how far the bias moves.
        """
        direction = torch.sign(load.mean() - load)
        self.bias += rate * direction


class MoE(nn.Module):
    """Mix K of E experts for every token (N, D), and one shared expert that every token passes.

    Args:
        config: experts, router, and the weights of its losses.
        width: D, of a token.
        modalities: M, how many modalities the load is counted by.
    """

    def __init__(self, config: MoEConfig, width: int, modalities: int) -> None:
        super().__init__()
        self.config = config
        self.modalities = modalities
        self.router = Router(config, width)
        w_in = torch.randn(config.num_experts, 2 * config.hidden, width)
        w_out = torch.randn(config.num_experts, width, config.hidden)
        self.w_in = nn.Parameter(w_in * width**-0.5)
        self.w_out = nn.Parameter(w_out * config.hidden**-0.5)
        self.experts: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] = grouped_mlp
        """Computes them; where processes divide them, with an exchange of tokens around it."""
        self.shared = SwiGLU(width, config.shared) if config.shared else None

    def forward(self, x: Tensor, modality: Tensor | None, real: Tensor | None = None) -> MoEOutput:
        """Send tokens through their experts.

        Args:
            x: tokens (N, D).
            modality: (N,) int64 in 0..M-1, the modality of each token; None where nothing is counted.
            real: (N,) bool, the tokens that count in losses and load; None for all. What comes out of the others means
                nothing.

        Returns:
            MoEOutput with x (N, D), with load (M, E) where it is counted, and then with losses in training.
        """
        chosen, weights, logits = self.router(x)
        y = self.experts(x, self.w_in, self.w_out, chosen, weights)
        if self.shared is not None:
            y = y + self.shared(x)
        if modality is None:
            return MoEOutput(y)
        losses = self.losses(logits, chosen, modality, real) if self.training else {}
        load = self.load(chosen, modality, real)
        return MoEOutput(y, losses, load)

    @torch.no_grad()
    def load(self, chosen: Tensor, modality: Tensor, real: Tensor | None = None) -> Tensor:
        """Count assignments.

        Args:
            chosen: experts (N, K) int64.
            modality: (N,) int64 in 0..M-1.
            real: (N,) bool, the tokens that count; None for all.

        Returns:
            (M, E) float32.
        """
        experts = self.config.num_experts
        cell = modality[:, None] * experts + chosen
        counts = count_of(cell.flatten(), self.modalities * experts, repeated(real, cell))
        return counts.view(self.modalities, experts).float()

    def losses(self, logits: Tensor, chosen: Tensor, modality: Tensor, real: Tensor | None = None) -> dict[str, Tensor]:
        """The router's losses whose weight is not zero, weighted: of the tokens of all ranks in training.

        `z` is ST-MoE's (Zoph et al. 2022), `balance` Switch's (Fedus et al. 2021), `entropy` LIMoE's (Mustafa et al.
        2022).

        Args:
            logits: affinity logits (N, E) fp32.
            chosen: experts (N, K) int64.
            modality: (N,) int64 in 0..M-1.
            real: (N,) bool, the tokens that count; None for all.

        Returns:
            scalars by name.
        """
        config = self.config
        group = step_group()
        losses = {}
        weight = torch.ones_like(logits[:, 0]) if real is None else real.to(logits.dtype)
        tokens = weight.sum()
        if config.z:
            squares = logits.logsumexp(1).square()
            losses["z"] = config.z * joint_mean(squares @ weight, tokens, group)
        if config.balance:
            own = count_of(chosen.flatten(), config.num_experts, repeated(real, chosen))
            counts = sum_over_ranks(own, group)
            share = counts / counts.sum().clamp(min=1)
            probability = joint_mean(weight @ logits.softmax(1), tokens, group)
            losses["balance"] = config.balance * config.num_experts * (share * probability).sum()
        if config.entropy:
            value = modality_entropy(logits.softmax(1), modality, self.modalities, group, real)
            losses["entropy"] = config.entropy * value
        return losses


def repeated(real: Tensor | None, choices: Tensor) -> Tensor | None:
    """real (N,) bool of tokens -> (N·K,) of their choices (N, K); None stays None."""
    return None if real is None else real[:, None].expand_as(choices).flatten()


class SwiGLU(nn.Module):
    """The shared expert, a gated MLP (Shazeer 2020): (..., D) -> (..., D).

    Args:
        width: D, of a token.
        hidden: H, of each of the two halves that are multiplied.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(nn.functional.silu(gate) * up)


def modality_entropy(
    probabilities: Tensor, modality: Tensor, modalities: int, group: Group = None, real: Tensor | None = None
) -> Tensor:
    """LIMoE's loss (Mustafa et al. 2022): sharp routing per token, spread routing per modality.

    Args:
        probabilities: routing (N, E) of each token, rows sum to 1.
        modality: (N,) int64 in 0..M-1, the modality of each token.
        modalities: M.
        group: whose tokens are counted together.
        real: (N,) bool, the tokens that count; None for all.

    Returns:
        (): the mean over modalities that have tokens of (mean entropy of a token's routing - entropy of the mean
        routing).
    """

    def entropy(p: Tensor) -> Tensor:
        return -(p * (p + 1e-9).log()).sum(-1)

    own = modality[:, None] == torch.arange(modalities, device=modality.device)
    if real is not None:
        own = own & real[:, None]
    # Of each modality: its tokens, the sum of their entropies, the sum of their routings.
    parts = torch.cat([torch.ones_like(probabilities[:, :1]), entropy(probabilities)[:, None], probabilities], 1)
    sums = joint_sum(own.to(parts.dtype).T @ parts, group)
    tokens = sums[:, 0].detach()
    means = sums[:, 1:] / tokens.clamp(min=1)[:, None]
    there = tokens > 0
    differences = means[:, 0] - entropy(means[:, 1:])
    return (differences * there).sum() / there.sum().clamp(min=1)
