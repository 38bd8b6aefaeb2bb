"""Triton kernels of the planes' gradient: one that adds to memory at once, and two that sort first and so repeat.

Written like ../kernels.py, whose parts they use. The gradient is collected in ACC, contiguous [B or 1, P, H, W, C].
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..kernels import RUN_TIME, _block, _corner, _line


@triton.jit
def _pair(place, inside, stride_c, AXES: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr):
    """The two numbers of each triple at `place` that belong to the columns and the rows of plane K."""
    step = stride_c.to(tl.int64)
    column = tl.load(place + ((AXES >> (4 * K)) & 3) * step, mask=inside, other=0.0).to(ACC)
    row = tl.load(place + ((AXES >> (4 * K + 2)) & 3) * step, mask=inside, other=0.0).to(ACC)
    return column, row


@triton.jit
def _add_corner(out, held, filled, shift, value, C: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr):
    """Add rows of `value` to the texels `held` + shift where `filled`, by the widest reductions that the chip has."""
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    texel = held + shift
    if WIDE:
        texel = texel.to(tl.int64)
    mask = filled[:, None] if C % BLOCK_C == 0 else filled[:, None] & (channels < C)[None, :]
    tl.atomic_add(out + (texel * C)[:, None] + channels[None, :], value, mask=mask != 0, sem="relaxed")


@triton.jit(do_not_specialize=RUN_TIME)
def plane_gradient_kernel(
    grad, points, tangent, out, count, blocks, height, width, sets,
    point_b, point_n, point_c, tangent_b, tangent_n, tangent_c,
    C: tl.constexpr, P: tl.constexpr, AXES: tl.constexpr, ALIGN: tl.constexpr, PADDING: tl.constexpr,
    NEAREST: tl.constexpr, TANGENT: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
    SEPARATE: tl.constexpr, SCALE: tl.constexpr, STEPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):
    """Add the gradient of BLOCK_N * STEPS points to that of the planes, `out` [B or 1, P, H, W, C] in ACC, contiguous.

    Every row of the tile walks along STEPS points that follow each other and keeps their sum as long as they stay in
    one cell, so that coherent points cost few additions to memory and incoherent ones no more than one each.
    grad is contiguous, [B, N, C] or, if SEPARATE, [B, N, P, C]; `sets` is 1 where all share one set of planes.
    """
    batch, block = _block(blocks)
    first = block * (BLOCK_N * STEPS)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    some = (channels < C)[None, :]
    per_point: tl.constexpr = P * C if SEPARATE else C
    grad += (batch * count + first) * per_point
    points += batch * point_b
    if TANGENT:
        tangent += batch * tangent_b
    texels = height.to(tl.int64) * width
    out += tl.where(sets > 1, batch, 0) * P * texels * C
    right = tl.where(width > 1, 1, 0)
    down = tl.where(height > 1, width, 0)
    for p in tl.static_range(P):
        held = tl.full([BLOCK_N], -1, tl.int32)
        sum0 = tl.zeros([BLOCK_N, BLOCK_C], ACC)
        if not NEAREST:
            sum1 = tl.zeros([BLOCK_N, BLOCK_C], ACC)
            sum2 = tl.zeros([BLOCK_N, BLOCK_C], ACC)
            sum3 = tl.zeros([BLOCK_N, BLOCK_C], ACC)
        # one turn more, without points, empties what the rows still hold
        for step in range(STEPS + 1):
            lanes = tl.arange(0, BLOCK_N) * STEPS + step
            inside = (lanes < count - first) & (step < STEPS)
            x, y = _pair(points + (first + lanes) * point_n, inside, point_c, AXES, p, ACC)
            column, wx0, wx1, sx0, sx1 = _line(x, width, ALIGN, PADDING, NEAREST)
            row, wy0, wy1, sy0, sy1 = _line(y, height, ALIGN, PADDING, NEAREST)
            if TANGENT:
                vx, vy = _pair(tangent + (first + lanes) * tangent_n, inside, tangent_c, AXES, p, ACC)
                sx0, sx1, sy0, sy1 = sx0 * vx, sx1 * vx, sy0 * vy, sy1 * vy
            weight0 = _corner(0, TANGENT, wx0, wx1, sx0, sx1, wy0, wy1, sy0, sy1)
            live = weight0 != 0
            if not NEAREST:
                weight1 = _corner(1, TANGENT, wx0, wx1, sx0, sx1, wy0, wy1, sy0, sy1)
                weight2 = _corner(2, TANGENT, wx0, wx1, sx0, sx1, wy0, wy1, sy0, sy1)
                weight3 = _corner(3, TANGENT, wx0, wx1, sx0, sx1, wy0, wy1, sy0, sy1)
                live = live | (weight1 != 0) | (weight2 != 0) | (weight3 != 0)
            live = live & inside
            given = live[:, None] if C % BLOCK_C == 0 else live[:, None] & some
            source = grad + (p * C if SEPARATE else 0) + lanes[:, None] * per_point + channels[None, :]
            cotangent = tl.load(source, mask=given, other=0.0).to(ACC) * SCALE
            cell = row * width + column
            left = live & (cell != held)
            full = (left | (step == STEPS)) & (held >= 0)
            _add_corner(out, held, full, 0, sum0, C, BLOCK_C, WIDE)
            sum0 = tl.where(left[:, None], 0.0, sum0) + weight0[:, None] * cotangent
            if not NEAREST:
                _add_corner(out, held, full & (width > 1), right, sum1, C, BLOCK_C, WIDE)
                _add_corner(out, held, full & (height > 1), down, sum2, C, BLOCK_C, WIDE)
                _add_corner(out, held, full & (width > 1) & (height > 1), right + down, sum3, C, BLOCK_C, WIDE)
                sum1 = tl.where(left[:, None], 0.0, sum1) + weight1[:, None] * cotangent
                sum2 = tl.where(left[:, None], 0.0, sum2) + weight2[:, None] * cotangent
                sum3 = tl.where(left[:, None], 0.0, sum3) + weight3[:, None] * cotangent
            held = tl.where(left, cell, held)
        out += texels * C


@triton.jit(do_not_specialize=RUN_TIME)
def key_kernel(
    points, tangent, keys, start, size, count, height, width, sets, point_b, point_n, point_c,
    tangent_b, tangent_n, tangent_c,
    P: tl.constexpr, AXES: tl.constexpr, ALIGN: tl.constexpr, PADDING: tl.constexpr, NEAREST: tl.constexpr,
    TANGENT: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """For every corner of the points start ... start + size - 1 its texel's row plus one, then which corner it is.

    Points are counted through the whole batch. Key [k * size + n] (int64) is (row + 1) << 32 | k * size + n, with 0 in
    place of row + 1 where the corner weighs nothing; no two are equal. `sets` is 1 where all share one set of planes.
    """
    local = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = local < size
    batch = (start + local) // count
    n = (start + local) % count
    base = tl.where(sets > 1, batch, 0) * P
    for p in tl.static_range(P):
        x, y = _pair(points + batch * point_b + n * point_n, inside, point_c, AXES, p, ACC)
        column, wx0, wx1, sx0, sx1 = _line(x, width, ALIGN, PADDING, NEAREST)
        row, wy0, wy1, sy0, sy1 = _line(y, height, ALIGN, PADDING, NEAREST)
        if TANGENT:
            vx, vy = _pair(tangent + batch * tangent_b + n * tangent_n, inside, tangent_c, AXES, p, ACC)
            sx0, sx1, sy0, sy1 = sx0 * vx, sx1 * vx, sy0 * vy, sy1 * vy
        for k in tl.static_range(1 if NEAREST else 4):
            weight = _corner(k, TANGENT, wx0, wx1, sx0, sx1, wy0, wy1, sy0, sy1)
            texel = ((base + p) * height + row + k // 2) * width + column + k % 2
            key = tl.where(weight != 0, (texel + 1) << 32, 0) | ((p * (1 if NEAREST else 4) + k) * size + local)
            tl.store(keys + (p * (1 if NEAREST else 4) + k) * size + local, key, mask=inside)


@triton.jit(do_not_specialize=RUN_TIME)
def segment_kernel(
    grad, points, tangent, keys, ends, out, start, size, count, height, width,
    point_b, point_n, point_c, tangent_b, tangent_n, tangent_c,
    C: tl.constexpr, P: tl.constexpr, AXES: tl.constexpr, ALIGN: tl.constexpr, PADDING: tl.constexpr,
    NEAREST: tl.constexpr, TANGENT: tl.constexpr, ACC: tl.constexpr, SEPARATE: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):
    """Add to one texel of `out` [rows, C] the weighted gradients of the points around it, always in the same order.

    keys are those of `key_kernel` in ascending order, ends[r] (int64) where those of texel r begin.
    """
    texel = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    some = channels < C
    plane = texel // height // width % P
    axes = AXES >> (4 * plane)
    column_axis = axes & 3
    row_axis = axes >> 2 & 3
    per_point: tl.constexpr = P * C if SEPARATE else C
    begin = tl.load(ends + texel)
    end = tl.load(ends + texel + 1)
    total = tl.zeros([BLOCK_K, BLOCK_C], ACC)
    for entry in range(begin, end, BLOCK_K):
        entries = entry + tl.arange(0, BLOCK_K)
        valid = entries < end
        place = tl.load(keys + entries, mask=valid, other=0) & 0xFFFFFFFF
        corner = place // size
        point = start + place - corner * size
        batch = point // count
        n = point - batch * count
        at = points + batch * point_b + n * point_n
        x = tl.load(at + column_axis * point_c, mask=valid, other=0.0).to(ACC)
        y = tl.load(at + row_axis * point_c, mask=valid, other=0.0).to(ACC)
        column, wx0, wx1, sx0, sx1 = _line(x, width, ALIGN, PADDING, NEAREST)
        row, wy0, wy1, sy0, sy1 = _line(y, height, ALIGN, PADDING, NEAREST)
        wx = tl.where(corner % 2 == 0, wx0, wx1)
        wy = tl.where(corner // 2 % 2 == 0, wy0, wy1)
        if NEAREST:
            weight = wx0 * wy0
        elif TANGENT:
            at = tangent + batch * tangent_b + n * tangent_n
            vx = tl.load(at + column_axis * tangent_c, mask=valid, other=0.0).to(ACC)
            vy = tl.load(at + row_axis * tangent_c, mask=valid, other=0.0).to(ACC)
            sx = tl.where(corner % 2 == 0, sx0, sx1) * vx
            sy = tl.where(corner // 2 % 2 == 0, sy0, sy1) * vy
            weight = sx * wy + wx * sy
        else:
            weight = wx * wy
        source = point * per_point
        if SEPARATE:
            source += plane * C
        cotangent = tl.load(
            grad + source[:, None] + channels[None, :], mask=valid[:, None] & some[None, :], other=0.0
        )
        total += tl.where(valid, weight, 0.0)[:, None] * (cotangent.to(ACC) * SCALE)
    if begin < end:
        target = out + texel * C + channels
        tl.store(target, tl.load(target, mask=some, other=0.0) + tl.sum(total, 0), mask=some)
