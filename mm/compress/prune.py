"""Structured pruning: experts that receive nothing, or next to nothing, from the modalities that are kept.

Letters: L layers, M modalities, E experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.errors import UserError


def experts_to_keep(load: Tensor, modalities: Sequence[int], share: float, top_k: int) -> list[Tensor]:
    """The experts that stay, of every layer as many: a model has one number of them.

    The least used go first, while those that went have together received at most `share` of the assignments of each
    modality that is kept. The layer that can spare the fewest decides how many go.

    Args:
        load: (L, M, E), assignments.
        modalities: numbers of those that are kept.
        share: of a modality's assignments, in [0, 1); 0 spares experts that receive nothing.
        top_k: experts that a token is sent to: as many stay.

    Returns:
        for each layer numbers (K,) int64, rising.

    Raises:
        UserError: a modality that is kept was never seen.
    """
    counts = load[:, list(modalities)].double()
    totals = counts.sum(2, keepdim=True)
    if (totals == 0).any():
        raise UserError("prune: a modality that is kept has no sample here, so that all experts would go")
    shares = counts / totals
    # An expert is as needed as the modality that needs it most finds it.
    order = shares.amax(1).argsort(dim=1, stable=True)
    lost = shares.gather(2, order[:, None].expand_as(shares)).cumsum(2).amax(1)
    spared = int((lost <= share).sum(1).min())
    kept = max(load.shape[2] - spared, top_k)
    return [layer[load.shape[2] - kept :].sort().values for layer in order]


def kept_share(load: Tensor, keep: Sequence[Tensor]) -> Tensor:
    """(L, M, E) assignments and the experts that stay -> (M,), the share of each modality's that they received; 1 of a
    modality that was never seen."""
    stayed = torch.stack([layer[:, kept].sum(1) for layer, kept in zip(load.double(), keep, strict=True)]).sum(0)
    total = load.double().sum((0, 2))
    return torch.where(total > 0, stayed / total.clamp(min=1), 1.0)
