"""Contrastive losses by tiles of the logits, in plain torch: nothing of size (rows, columns) outlives its tile.

A rank holds the rows of its shard and the columns of the whole batch. The forward pass keeps a running log-sum-exp
per row and per column; the backward pass recomputes every tile from them. ``first`` is the column of the rank's first
positive.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

Ids = Tensor | None
TILE = 1024
"""Rows and columns of a tile: 4 MB of logits, within the last-level cache."""


def nce_forward(a: Tensor, b: Tensor, scale: Tensor, row_ids: Ids, ids: Ids, first: int) -> tuple[Tensor, Tensor]:
    """a (n, D), b (B, D), ids (n,) and (B,) -> log-sum-exp of the rows (n,), of the columns over these rows (B,)."""
    rows = a.new_full((a.shape[0],), -torch.inf)
    columns = a.new_full((b.shape[0],), -torch.inf)
    for i, j, logits in _tiles(a, b, scale, row_ids, ids, first):
        rows[i] = torch.logaddexp(rows[i], logits.logsumexp(1))
        columns[j] = torch.logaddexp(columns[j], logits.logsumexp(0))
    return rows, columns


def nce_backward(
    a: Tensor, b: Tensor, scale: Tensor, rows: Tensor, columns: Tensor, row_ids: Ids, ids: Ids, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of Σ_i (rows_i + columns_i) / 2 - logit_ii for a (n, D), b (B, D; these rows' share) and scale ()."""
    d_a = torch.zeros_like(a)
    d_b = torch.zeros_like(b)
    for i, j, logits in _tiles(a, b, scale, row_ids, ids, first):
        share = (logits - columns[j]).exp_()
        share.add_(logits.sub_(rows[i, None]).exp_()).mul_(0.5)
        _diagonal(share, i, j, first).sub_(1)
        d_a[i].addmm_(share, b[j])
        d_b[j].addmm_(share.T, a[i])
    d_scale = torch.einsum("nd,nd->n", d_a, a).sum()  # Σ_ij g_ij a_i·b_j, without another (n, D)
    return d_a.mul_(scale), d_b.mul_(scale), d_scale


def sigmoid_forward(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, row_ids: Ids, ids: Ids, first: int) -> Tensor:
    """The sum over these rows of the pairs' losses: a (n, D), b (B, D) -> ()."""
    total = a.new_zeros(())
    for i, j, logits in _tiles(a, b, scale, row_ids, ids, first):
        _diagonal(logits.add_(bias).neg_(), i, j, first).neg_()
        total -= F.logsigmoid(logits).sum()
    return total


def sigmoid_backward(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, row_ids: Ids, ids: Ids, first: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of that sum for a (n, D), b (B, D), scale () and bias ()."""
    d_a = torch.zeros_like(a)
    d_b = torch.zeros_like(b)
    d_bias = a.new_zeros(())
    for i, j, logits in _tiles(a, b, scale, row_ids, ids, first):
        positives = _diagonal(logits.add_(bias), i, j, first).neg_()
        share = logits.sigmoid_()  # for positives -sigmoid(-x): sigmoid(x) - 1 would cancel
        positives.neg_()
        d_a[i].addmm_(share, b[j])
        d_b[j].addmm_(share.T, a[i])
        d_bias += share.sum()
    d_scale = torch.einsum("nd,nd->n", d_a, a).sum()
    return d_a.mul_(scale), d_b.mul_(scale), d_scale, d_bias


def _tiles(
    a: Tensor, b: Tensor, scale: Tensor, row_ids: Ids, ids: Ids, first: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Row slice, column slice, and the logits there, -inf where a pair is skipped; the tile is reused by the next
    one.
    """
    space = a.new_empty(min(TILE, a.shape[0]) * min(TILE, b.shape[0]))
    for top in range(0, a.shape[0], TILE):
        i = slice(top, min(top + TILE, a.shape[0]))
        scaled = a[i] * scale
        for left in range(0, b.shape[0], TILE):
            j = slice(left, min(left + TILE, b.shape[0]))
            height = i.stop - i.start
            breadth = j.stop - j.start
            logits = space[: height * breadth].view(height, breadth)
            torch.mm(scaled, b[j].T, out=logits)
            if row_ids is not None and ids is not None:
                equal = row_ids[i, None] == ids[None, j]
                _diagonal(equal, i, j, first).fill_(False)
                logits.masked_fill_(equal, -torch.inf)
            yield i, j, logits


def _diagonal(tile: Tensor, i: slice, j: slice, first: int) -> Tensor:
    """The part of the positives' diagonal that lies in the tile, as a view (empty where it does not pass through)."""
    return tile.diagonal(first + i.start - j.start)
