# mypy: allow-untyped-defs
"""What is done with a block of a tile of logits, and the merging of what blocks found (see
`kernels.info_nce.triton_kernel`).
"""

import triton
import triton.language as tl


@triton.jit
def _block(
    x,
    y,
    products,
    x_ids,
    y_ids,
    height,
    width,
    depth,
    ahead,
    HAS_IDS: tl.constexpr,
    GIVEN: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """This program's rows, columns and products, which pairs count, and which are positives."""
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    keep = (i < height)[:, None] & (j < width)[None, :]
    if GIVEN:
        raw = tl.load(products + i[:, None] * width + j[None, :], keep, 0.0)
    else:
        c = tl.arange(0, CHUNK)
        x += tl.minimum(i, height - 1).to(tl.int64)[:, None] * depth + c[None, :]
        y += tl.minimum(j, width - 1).to(tl.int64)[None, :] * depth + c[:, None]
        raw = tl.zeros((ROWS, COLUMNS), tl.float32)
        for left in range(0, depth, CHUNK):
            if EVEN:
                xs = tl.load(x + left)
                ys = tl.load(y + left)
            else:
                xs = tl.load(x + left, (c < depth - left)[None, :], 0.0)
                ys = tl.load(y + left, (c < depth - left)[:, None], 0.0)
            raw = tl.dot(xs, ys, raw, input_precision=PRECISION)
    positive = ((i + ahead)[:, None] == j[None, :]) & keep
    if HAS_IDS:
        equal = tl.load(x_ids + i, i < height, 0)[:, None] == tl.load(y_ids + j, j < width, 0)[None, :]
        keep = keep & (positive | (equal == 0))
    return i, j, raw, keep, positive


@triton.jit
def nce_kernel(
    x,
    y,
    products,
    scale,
    x_ids,
    y_ids,
    of_rows,
    of_columns,
    positives,
    height,
    width,
    depth,
    ahead,
    HAS_IDS: tl.constexpr,
    GIVEN: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Log-sum-exp of the block's rows -> of_rows (height, column blocks), of its columns -> of_columns (row blocks,
    width), and its positives' logits.
    """
    i, j, raw, keep, positive = _block(
        x, y, products, x_ids, y_ids, height, width, depth, ahead, HAS_IDS, GIVEN, EVEN, PRECISION, ROWS, COLUMNS, CHUNK
    )
    logits = tl.where(keep, raw * tl.load(scale), float("-inf"))
    tl.store(of_rows + i * tl.num_programs(0) + tl.program_id(0), _log_sum_exp(logits, 1), i < height)
    tl.store(of_columns + tl.program_id(1) * width + j, _log_sum_exp(logits, 0), j < width)
    start = tl.program_id(1) * ROWS + ahead - tl.program_id(0) * COLUMNS
    if (start > -ROWS) & (start < COLUMNS):
        own = tl.sum(tl.where(positive, logits, 0.0), 1)
        tl.store(positives + i, own, tl.max(positive.to(tl.int32), 1) > 0)


@triton.jit
def _log_sum_exp(x, axis: tl.constexpr):
    high = tl.maximum(tl.max(x, axis), -1e30)  # finite: where there is no pair exp(-inf) is 0, not nan
    total = tl.sum(tl.exp(x - tl.expand_dims(high, axis)), axis)
    return high + tl.log(tl.maximum(total, 1e-37))


@triton.jit(do_not_specialize=["fresh_rows", "fresh_columns"])
def merge_kernel(
    of_rows,
    of_columns,
    rows,
    columns,
    height,
    width,
    row_parts,
    column_parts,
    row_programs,
    fresh_rows,
    fresh_columns,
    MERGED: tl.constexpr,
    ROW_PARTS: tl.constexpr,
    COLUMN_PARTS: tl.constexpr,
):
    program = tl.program_id(0)
    if program < row_programs:
        _merge(of_rows, rows, program, height, row_parts, row_parts, 1, fresh_rows, MERGED, ROW_PARTS)
    else:
        program -= row_programs
        _merge(of_columns, columns, program, width, column_parts, 1, width, fresh_columns, MERGED, COLUMN_PARTS)


@triton.jit
def _merge(parts, out, program, n, count, item, part, fresh, MERGED: tl.constexpr, PARTS: tl.constexpr):
    """Log-sum-exp of the parts of every item, and of what there was before."""
    i = program * MERGED + tl.arange(0, MERGED)
    p = tl.arange(0, PARTS)
    listed = (i < n)[:, None] & (p < count)[None, :]
    now = _log_sum_exp(tl.load(parts + i[:, None] * item + p[None, :] * part, listed, float("-inf")), 1)
    before = tl.load(out + i, (i < n) & (fresh == 0), float("-inf"))
    high = tl.maximum(now, before)
    tl.store(out + i, high + tl.log(tl.exp(now - high) + tl.exp(before - high)), i < n)


@triton.jit
def sigmoid_kernel(
    x,
    y,
    products,
    scale,
    x_ids,
    y_ids,
    bias,
    totals,
    height,
    width,
    depth,
    ahead,
    HAS_IDS: tl.constexpr,
    GIVEN: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The sum of the block's losses."""
    _, _, raw, keep, positive = _block(
        x, y, products, x_ids, y_ids, height, width, depth, ahead, HAS_IDS, GIVEN, EVEN, PRECISION, ROWS, COLUMNS, CHUNK
    )
    logits = raw * tl.load(scale) + tl.load(bias)
    signed = tl.where(positive, -logits, logits)
    small = tl.exp(-tl.abs(signed))
    log1p = tl.where(small < 1e-3, small * (1.0 - small * (0.5 - small / 3.0)), tl.log(1.0 + small))
    losses = tl.where(keep, tl.maximum(signed, 0.0) + log1p, 0.0)
    tl.store(totals + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.sum(losses, 1), 0))


@triton.jit
def gradient_kernel(
    x,
    y,
    products,
    scale,
    x_ids,
    y_ids,
    shares,
    parts,
    grad,
    bias,
    rows,
    columns,
    weight,
    LATER: tl.constexpr,
    SIGMOID: tl.constexpr,
    height,
    width,
    depth,
    ahead,
    HAS_IDS: tl.constexpr,
    GIVEN: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The gradient of the block's products, or LATER of the share of the logits only, in place of given products; and
    its sums for the scale and the bias.
    """
    i, j, raw, keep, positive = _block(
        x, y, products, x_ids, y_ids, height, width, depth, ahead, HAS_IDS, GIVEN, EVEN, PRECISION, ROWS, COLUMNS, CHUNK
    )
    logits = raw * tl.load(scale)
    if SIGMOID:
        share = _sigmoid_share(logits + tl.load(bias), positive)
    else:
        of_row = tl.load(rows + i, i < height, 0.0)
        of_column = tl.load(columns + j, j < width, 0.0)
        share = 0.5 * (tl.exp(logits - of_row[:, None]) + tl.exp(logits - of_column[None, :]))
        share = tl.where(positive, share - 1.0, share)
    share = tl.where(keep, share, 0.0)
    factor = tl.load(grad) * weight
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(parts + program, tl.sum(tl.sum(share * raw, 1), 0) * factor)
    if SIGMOID:
        tl.store(parts + tl.num_programs(0) * tl.num_programs(1) + program, tl.sum(tl.sum(share, 1), 0) * factor)
    if not LATER:
        share *= factor * tl.load(scale)
    inside = (i < height)[:, None] & (j < width)[None, :]
    tl.store(shares + i[:, None] * width + j[None, :], share.to(shares.dtype.element_ty), inside)


@triton.jit
def _sigmoid_share(logits, positive):
    share = tl.sigmoid(tl.where(positive, -logits, logits))  # sigmoid(x) - 1 would cancel
    return tl.where(positive, -share, share)
