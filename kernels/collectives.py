"""All-gather across ranks that lets gradients through: each rank sees the whole batch,
each tensor's gradient returns home."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(x: Tensor) -> Tensor:
    """(B, ...) on each of W ranks -> (W·B, ...) in rank order, on every rank.

    Integers and booleans are gathered without gradients.
    """
    if not is_distributed():
        return x
    if x.is_floating_point():
        return torch.cat(all_gather(x.contiguous()), 0)
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts, 0)
