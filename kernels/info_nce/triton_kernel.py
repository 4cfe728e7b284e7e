# mypy: allow-untyped-defs
"""Contrastive losses on CUDA, by tiles of the logits.

Narrow factors, and float32 in IEEE precision, are multiplied and reduced in one kernel: the logits never leave the
chip, and of their gradient there is one tile. Float32 factors are then three products of TF32 ones, which are as exact.
Where the user allows TF32 itself, cuBLAS multiplies, tile by tile, and the same kernels pass over its products. The two
products of a tile's gradient are cuBLAS's in any precision.

Rows and columns are reduced block by block and then merged in a fixed order: there are no atomic additions, and results
repeat exactly. The backward pass computes every tile again.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.info_nce.pairs import Pairs
from kernels.info_nce.triton_blocks import gradient_kernel, merge_kernel, nce_kernel, sigmoid_kernel
from kernels.launch import ceil_div, launch, power_of_two

TILE_ROWS = 4096
TILE_BYTES = 2**25
"""Of a tile that is kept, which bounds its columns: within a large GPU's cache."""
BAND = 2**15
"""Columns of a tile that is not kept."""
MERGED = 32
"""Rows or columns whose parts a program merges."""


class _Blocks(NamedTuple):
    """What a program reduces, and how it multiplies."""

    rows: int
    columns: int
    chunk: int
    """Channels that are multiplied at once."""
    warps: int
    stages: int
    given: bool
    """The products are cuBLAS's."""
    precision: str
    """Of float32 factors."""


GIVEN = _Blocks(32, 128, 32, 4, 1, True, "ieee")
SPLIT = _Blocks(64, 128, 32, 4, 2, False, "tf32x3")
NARROW = _Blocks(128, 128, 64, 8, 3, False, "ieee")


class _Tile(NamedTuple):
    """Rows of a against rows of b, both in the dtype of the products."""

    i: slice
    j: slice
    a: Tensor
    b: Tensor
    products: Tensor
    """a bᵀ, float32; where no kernel reads it, any tensor, as a kernel takes a pointer."""
    ids: tuple[Tensor, Tensor]
    """Of rows and columns; where there are none, any tensor."""
    offset: int
    """The column, counted from the tile's first, of the first row's positive."""
    across: int
    down: int
    """Blocks in a row and in a column."""


def nce_forward(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """As `kernels.info_nce.tiled.nce_forward`."""
    device = pairs.a.device
    rows = torch.empty(len(pairs.a), device=device)
    columns = torch.empty(len(pairs.b), device=device)
    positives = torch.empty(len(pairs.a), device=device)
    blocks = _blocks(pairs)
    for tile in _tiles(pairs, blocks, kept=blocks.given):
        height = len(tile.a)
        width = len(tile.b)
        of_rows = torch.empty(height, tile.across, device=device)
        of_columns = torch.empty(tile.down, width, device=device)
        launch(
            nce_kernel,
            (tile.across, tile.down),
            *_operands(tile, pairs),
            of_rows,
            of_columns,
            _part(positives, tile.i),
            *_sizes(tile, pairs, blocks),
            num_warps=blocks.warps,
            num_stages=blocks.stages,
        )
        programs = ceil_div(height, MERGED)
        launch(
            merge_kernel,
            (programs + ceil_div(width, MERGED), 1),
            of_rows,
            of_columns,
            _part(rows, tile.i),
            _part(columns, tile.j),
            height,
            width,
            tile.across,
            tile.down,
            programs,
            int(tile.j.start == 0),
            int(tile.i.start == 0),
            MERGED,
            power_of_two(tile.across),
            power_of_two(tile.down),
        )
    return rows, columns, positives


def nce_backward(
    pairs: Pairs, rows: Tensor, columns: Tensor, grad: Tensor, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `kernels.info_nce.tiled.nce_backward`."""
    d_a, d_b, (d_scale,) = _gradients(pairs, None, rows, columns, grad, weight)
    return d_a, d_b, d_scale


def sigmoid_forward(pairs: Pairs, bias: Tensor) -> Tensor:
    """As `kernels.info_nce.tiled.sigmoid_forward`."""
    totals = []
    blocks = _blocks(pairs)
    for tile in _tiles(pairs, blocks, kept=blocks.given):
        total = torch.empty(tile.down, tile.across, device=pairs.a.device)
        launch(
            sigmoid_kernel,
            (tile.across, tile.down),
            *_operands(tile, pairs),
            bias,
            total,
            *_sizes(tile, pairs, blocks),
            num_warps=blocks.warps,
            num_stages=blocks.stages,
        )
        totals.append(total.sum())
    return _sum(totals)


def sigmoid_backward(pairs: Pairs, bias: Tensor, grad: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `kernels.info_nce.tiled.sigmoid_backward`."""
    d_a, d_b, (d_scale, d_bias) = _gradients(pairs, bias, None, None, grad, weight)
    return d_a, d_b, d_scale, d_bias


def _gradients(
    pairs: Pairs, bias: Tensor | None, rows: Tensor | None, columns: Tensor | None, grad: Tensor, weight: float
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Of a, of b, and of scale and, where there is one, bias; rows and columns are InfoNCE's log-sum-exps."""
    d_a = torch.empty(pairs.a.shape, device=pairs.a.device)
    d_b = torch.empty(pairs.b.shape, device=pairs.a.device)
    sums: list[list[Tensor]] = [[]] if bias is None else [[], []]
    blocks = _blocks(pairs)
    later = pairs.dtype == torch.float16  # a share of a share of a large batch is below its range
    shares = None if blocks.given else _space(pairs, pairs.dtype)
    for tile in _tiles(pairs, blocks, kept=True):
        share = tile.products if shares is None else _view(shares, tile.a, tile.b)
        parts = torch.empty(len(sums), tile.down, tile.across, device=pairs.a.device)
        launch(
            gradient_kernel,
            (tile.across, tile.down),
            *_operands(tile, pairs),
            share,
            parts,
            grad,
            grad if bias is None else bias,
            grad if rows is None else _part(rows, tile.i),
            grad if columns is None else _part(columns, tile.j),
            weight,
            later,
            bias is not None,
            *_sizes(tile, pairs, blocks),
            num_warps=blocks.warps,
            num_stages=blocks.stages,
        )
        for found, part in zip(sums, parts, strict=True):
            found.append(part.sum())
        _add_product(_part(d_a, tile.i), share, tile.b, tile.j.start == 0)
        _add_product(_part(d_b, tile.j), share.T, tile.a, tile.i.start == 0)
    if later:
        torch._foreach_mul_([d_a, d_b], grad * pairs.scale * weight)
    return d_a, d_b, [_sum(found) for found in sums]


def _sum(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def _blocks(pairs: Pairs) -> _Blocks:
    if pairs.dtype != torch.float32:
        return NARROW
    return GIVEN if torch.backends.cuda.matmul.fp32_precision == "tf32" else SPLIT


def _tiles(pairs: Pairs, blocks: _Blocks, kept: bool) -> Iterator[_Tile]:
    """The tiles of a bᵀ; the next one overwrites given products."""
    n = len(pairs.a)
    m = len(pairs.b)
    columns = TILE_BYTES // (TILE_ROWS * pairs.dtype.itemsize) if kept else BAND
    space = _space(pairs, torch.float32) if blocks.given else pairs.scale
    for top in range(0, n, TILE_ROWS):
        i = slice(top, min(top + TILE_ROWS, n))
        a = _part(pairs.a, i).to(pairs.dtype)
        for left in range(0, m, columns):
            j = slice(left, min(left + columns, m))
            b = _part(pairs.b, j).to(pairs.dtype)
            products = space
            if blocks.given:
                products = _view(space, a, b)
                _add_product(products, a, b.T, True)
            ids = (products, products)
            if pairs.row_ids is not None and pairs.ids is not None:
                ids = (_part(pairs.row_ids, i), _part(pairs.ids, j))
            across = ceil_div(len(b), blocks.columns)
            yield _Tile(i, j, a, b, products, ids, pairs.first + top - left, across, ceil_div(len(a), blocks.rows))


def _space(pairs: Pairs, dtype: torch.dtype) -> Tensor:
    """For a tile that is kept."""
    columns = TILE_BYTES // (TILE_ROWS * dtype.itemsize)
    size = min(TILE_ROWS, len(pairs.a)) * min(columns, len(pairs.b))
    return torch.empty(size, dtype=dtype, device=pairs.a.device)


def _part(x: Tensor, rows: slice) -> Tensor:
    """Those rows of x; a view of all of them would cost the host as much as a small kernel."""
    return x if rows.stop - rows.start == len(x) else x[rows]


def _view(space: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return space[: len(a) * len(b)].view(len(a), len(b))


def _operands(tile: _Tile, pairs: Pairs) -> tuple[Tensor, ...]:
    return tile.a, tile.b, tile.products, pairs.scale, *tile.ids


def _sizes(tile: _Tile, pairs: Pairs, blocks: _Blocks) -> tuple:
    depth = tile.a.shape[1]
    return (
        len(tile.a),
        len(tile.b),
        depth,
        tile.offset,
        pairs.ids is not None,
        blocks.given,
        depth % blocks.chunk == 0,
        blocks.precision,
        blocks.rows,
        blocks.columns,
        blocks.chunk,
    )


def _add_product(out: Tensor, x: Tensor, y: Tensor, fresh: bool) -> None:
    """out = x y, or out += x y; out is float32 and so is the sum, whatever x and y are."""
    if x.dtype != out.dtype and x.is_cuda:
        if fresh:
            torch.mm(x, y, out_dtype=out.dtype, out=out)
        else:
            torch.addmm(out, x, y, out_dtype=out.dtype, out=out)
        return
    x = x.to(out.dtype)  # in Triton's interpreter: CPUs have no wide product of narrow factors
    y = y.to(out.dtype)
    if fresh:
        torch.mm(x, y, out=out)
    else:
        out.addmm_(x, y)
