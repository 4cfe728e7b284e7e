"""Routed experts of which every process holds a share: tokens travel to their experts and back."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from kernels.collectives import Group, exchange, partial_sum, rank_and_size, shared_input
from kernels.dispatch import compute_dtype
from kernels.grouped_mlp import grouped_mlp


@dataclass(frozen=True)
class DividedExperts:
    """`kernels.grouped_mlp` of experts that two groups of processes divide, by number: in ep shares, each in tp parts.

    The ranks of `ep` have tokens of their own and send them to each other. Those of `tp` have the same tokens: each
    takes the choices of its own experts, and what they find is added.

    Args:
        num_experts: E, of all processes.
        ep: whose ranks hold different experts and have different tokens; None for one.
        tp: whose ranks hold different experts and have the same tokens; None for one.
    """

    num_experts: int
    ep: Group
    tp: Group

    def __call__(self, x: Tensor, w_in: Tensor, w_out: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """x (N, D), w_in (E, 2H, D), w_out (E, D, H), indices (N, K), weights (N, K) -> (N, D), see `grouped_mlp`.

        Of w_in and w_out this process has its own experts.
        """
        tokens, width = x.shape
        choices, top_k = indices.numel(), indices.shape[1]
        dtype = compute_dtype(x)
        x = shared_input(x.to(dtype), self.tp)
        weights = shared_input(weights, self.tp)
        order, counts = self.own_choices(indices.flatten())
        rows = x.index_select(0, order // top_k)
        y = self.at_their_experts(rows, counts, local(w_in), local(w_out))
        # One place for each choice: sums of a fixed order, the same bits each time.
        of_choices = y.new_zeros(choices, width).index_copy(0, order, y).view(tokens, top_k, width)
        with torch.autocast(x.device.type, enabled=False):
            mixed = (weights[..., None].float() * of_choices.float()).sum(1)
        return partial_sum(mixed.to(dtype), self.tp)

    def own_choices(self, experts: Tensor) -> tuple[Tensor, Tensor]:
        """Which choices this rank of `tp` takes.

        Args:
            experts: (N·K,) int64, the expert of each choice.

        Returns:
            (n,) int64, the choices in the order of their experts; (shares, experts of a share) int64, how many each
            expert of this rank and of its counterparts in other shares has.
        """
        rank, parts = rank_and_size(self.tp)
        _, shares = rank_and_size(self.ep)
        counts = torch.bincount(experts, minlength=self.num_experts).view(shares, parts, -1)[:, rank]
        order = experts.argsort(stable=True)
        if parts > 1:
            size = self.num_experts // (shares * parts)
            order = order[experts[order] // size % parts == rank]
        return order, counts

    def at_their_experts(self, rows: Tensor, counts: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        """Send rows (n, D) to the ranks that hold their experts, and take back what these make of them, (n, D)."""
        arriving = exchange(counts, [1] * len(counts), [1] * len(counts), self.ep)
        sent, received = torch.stack([counts.sum(1), arriving.sum(1)]).tolist()
        here = exchange(rows, sent, received, self.ep)
        own = torch.arange(counts.shape[1], device=rows.device).repeat(len(counts))
        expert = own.repeat_interleave(arriving.flatten(), output_size=len(here))
        made = grouped_mlp(here, w_in, w_out, expert[:, None], here.new_ones(len(here), 1, dtype=torch.float32))
        return exchange(made, received, sent, self.ep)


def local(parameter: Tensor) -> Tensor:
    """The part of a parameter that this process holds."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
