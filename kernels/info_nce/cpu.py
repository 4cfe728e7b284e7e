"""Contrastive losses by tiles of the logits, in plain torch: nothing of size (rows, columns) outlives its tile.

A rank holds the rows of its shard and the columns of the whole batch. The forward pass keeps a running log-sum-exp
per row and per column; the backward pass recomputes every tile from them.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.info_nce.pairs import Pairs

TILE = 1024
"""Rows and columns of a tile: 4 MB of logits, within the last-level cache."""


def nce_forward(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """As `kernels.info_nce.tiled.nce_forward`."""
    a, b = pairs.a, pairs.b
    rows = a.new_full((a.shape[0],), -torch.inf)
    columns = a.new_full((b.shape[0],), -torch.inf)
    positives = a.new_empty(a.shape[0])
    for i, j, logits in _tiles(pairs):
        rows[i] = torch.logaddexp(rows[i], logits.logsumexp(1))
        columns[j] = torch.logaddexp(columns[j], logits.logsumexp(0))
        own = _diagonal(logits, i, j, pairs.first)
        start = max(i.start, j.start - pairs.first)
        positives[start : start + len(own)] = own
    return rows, columns, positives


def nce_backward(
    pairs: Pairs, rows: Tensor, columns: Tensor, grad: Tensor, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `kernels.info_nce.tiled.nce_backward`."""
    a, b = pairs.a, pairs.b
    d_a = torch.zeros_like(a)
    d_b = torch.zeros_like(b)
    for i, j, logits in _tiles(pairs):
        share = (logits - columns[j]).exp_()
        share.add_(logits.sub_(rows[i, None]).exp_()).mul_(0.5)
        _diagonal(share, i, j, pairs.first).sub_(1)
        d_a[i].addmm_(share, b[j])
        d_b[j].addmm_(share.T, a[i])
    return _weighed(pairs, d_a, d_b, grad * weight)


def sigmoid_forward(pairs: Pairs, bias: Tensor) -> Tensor:
    """As `kernels.info_nce.tiled.sigmoid_forward`."""
    total = pairs.a.new_zeros(())
    for i, j, logits in _tiles(pairs):
        _diagonal(logits.add_(bias).neg_(), i, j, pairs.first).neg_()
        total -= F.logsigmoid(logits).sum()
    return total


def sigmoid_backward(pairs: Pairs, bias: Tensor, grad: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `kernels.info_nce.tiled.sigmoid_backward`."""
    a, b = pairs.a, pairs.b
    d_a = torch.zeros_like(a)
    d_b = torch.zeros_like(b)
    d_bias = a.new_zeros(())
    for i, j, logits in _tiles(pairs):
        positives = _diagonal(logits.add_(bias), i, j, pairs.first).neg_()
        share = logits.sigmoid_()  # for positives -sigmoid(-x): sigmoid(x) - 1 would cancel
        positives.neg_()
        d_a[i].addmm_(share, b[j])
        d_b[j].addmm_(share.T, a[i])
        d_bias += share.sum()
    factor = grad * weight
    return *_weighed(pairs, d_a, d_b, factor), d_bias * factor


def _weighed(pairs: Pairs, d_a: Tensor, d_b: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for a, b and scale from those for scale · a and scale · b."""
    d_scale = torch.einsum("nd,nd->n", d_a, pairs.a).sum()  # Σ_ij g_ij a_i·b_j, without another (n, D)
    torch._foreach_mul_([d_a, d_b], pairs.scale * factor)
    return d_a, d_b, d_scale * factor


def _tiles(pairs: Pairs) -> Iterator[tuple[slice, slice, Tensor]]:
    """Row slice, column slice, and scale · a bᵀ there, -inf where a pair is skipped; the tile is reused by the next
    one.
    """
    a, b, row_ids, ids = pairs.a, pairs.b, pairs.row_ids, pairs.ids
    space = a.new_empty(min(TILE, a.shape[0]) * min(TILE, b.shape[0]))
    for top in range(0, a.shape[0], TILE):
        i = slice(top, min(top + TILE, a.shape[0]))
        scaled = a[i] * pairs.scale
        for left in range(0, b.shape[0], TILE):
            j = slice(left, min(left + TILE, b.shape[0]))
            height = i.stop - i.start
            breadth = j.stop - j.start
            logits = space[: height * breadth].view(height, breadth)
            torch.mm(scaled, b[j].T, out=logits)
            if row_ids is not None and ids is not None:
                equal = row_ids[i, None] == ids[None, j]
                _diagonal(equal, i, j, pairs.first).fill_(False)
                logits.masked_fill_(equal, -torch.inf)
            yield i, j, logits


def _diagonal(tile: Tensor, i: slice, j: slice, first: int) -> Tensor:
    """The part of the positives' diagonal that lies in the tile, as a view (empty where it does not pass through)."""
    return tile.diagonal(first + i.start - j.start)
