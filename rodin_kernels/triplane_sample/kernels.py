"""Triton kernels of tri-plane sampling: the rows of a tile are points, its columns channels, read 128 bits at once.

Planes are read where they lie, channels innermost. All strides come in units of UNIT elements, a constant power of two
that divides them, so that the compiler knows how far it may widen loads. Sizes and strides are run-time values; what a
program starts from is counted in 64 bits, what lies between its points in 32 unless WIDE.

The weights of a point's texels are the hat function's, as in torch_path.py: both texels of a line are always
neighbours inside the plane, whatever the coordinate, and a texel that weighs nothing is not read.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Run-time numbers, for none of which a kernel is compiled anew.
RUN_TIME = (
    "count", "blocks", "height", "width", "plane_b", "plane_p", "plane_h", "plane_w", "start", "size", "sets",
    "point_b", "point_n", "point_c", "tangent_b", "tangent_n", "tangent_c",
)


@triton.jit
def _hat(offset):
    height = 1 - tl.abs(offset)
    # keeps what is not a number, as a maximum would not
    return tl.where(height < 0, 0.0, height)


@triton.jit
def _hat_slope(offset):
    """Derivative of the hat, at its corners the one from the right, as floor makes it."""
    rising = (offset >= -1) & (offset < 0)
    falling = (offset >= 0) & (offset < 1)
    return tl.where(rising, 1.0, tl.where(falling, -1.0, 0.0))


@triton.jit
def _place(x, extent, ALIGN: tl.constexpr, PADDING: tl.constexpr):
    """Position on a line of `extent` texels after padding, and its derivative; see `texel_position` in reference.py."""
    scale = (extent - 1) * 0.5 if ALIGN else extent * 0.5
    position = (x + 1) * scale if ALIGN else (x + 1) * scale - 0.5
    if PADDING == 0:
        slope = tl.where((position < -1) | (position > extent), 0.0, scale)
        position = tl.where(position < -1, -1.0, tl.where(position > extent, extent, position))
    else:
        slope = scale
        if PADDING == 2:
            low = 0.0 if ALIGN else -0.5
            span = extent - 1 if ALIGN else extent
            # a line of one texel has no width to fold into: any will do, what follows sends all to texel 0
            span = tl.where(span == 0, 1.0, span)
            distance = tl.abs(position - low)
            turns = tl.floor(distance / span)
            # from the same count of turns, so that a rounded quotient cannot send a point to the wrong end
            rest = distance - turns * span
            odd = turns - 2 * tl.floor(turns * 0.5) == 1
            slope = tl.where(odd != (position < low), -slope, slope)
            # so far out that floating point holds no texels any more, texel 0; see `LARGEST_FOLD` in reference.py
            position = tl.where(turns < 4194304, tl.where(odd, span - rest, rest) + low, 0.0)
        last = extent - 1
        slope = tl.where((position > 0) & (position < last), slope, 0.0)
        # what is not a number fails both comparisons and becomes 0 here
        position = tl.where(position > 0, tl.where(position < last, position, last), 0.0)
    return position, slope


@triton.jit
def _line(x, size, ALIGN: tl.constexpr, PADDING: tl.constexpr, NEAREST: tl.constexpr):
    """What a coordinate reads on a line: the first texel, two neighbours' weights, the slopes of both weights."""
    extent = tl.zeros_like(x) + size
    position, slope = _place(x, extent, ALIGN, PADDING)
    if NEAREST:
        below = tl.floor(position)
        rest = position - below
        odd = below - 2 * tl.floor(below * 0.5)
        texel = below + tl.where((rest > 0.5) | ((rest == 0.5) & (odd == 1)), 1.0, 0.0)
        inside = (texel >= 0) & (texel < extent)
        first = tl.where(inside, texel, 0.0)
        weight0 = tl.where(inside, 1.0, 0.0).to(x.dtype)
        weight1 = tl.zeros_like(x)
        slope0 = tl.zeros_like(x)
        slope1 = tl.zeros_like(x)
    else:
        last = tl.where(extent > 2, extent - 2, 0.0)
        first = tl.floor(position)
        # in this order, because what is not a number fails the first comparison and has to become 0
        first = tl.where(first > 0, first, 0.0)
        first = tl.where(first < last, first, last)
        offset = position - first
        weight0 = _hat(offset)
        slope0 = _hat_slope(offset) * slope
        weight1 = tl.where(size > 1, _hat(offset - 1), 0.0)
        slope1 = tl.where(size > 1, _hat_slope(offset - 1) * slope, 0.0)
    return first.to(tl.int32), weight0, weight1, slope0, slope1


@triton.jit
def _pick(x, y, z, AXES: tl.constexpr, K: tl.constexpr):
    """The coordinate along the columns (K = 2 p) or the rows (K = 2 p + 1) of plane p."""
    return x if (AXES >> (2 * K)) & 3 == 0 else (y if (AXES >> (2 * K)) & 3 == 1 else z)


@triton.jit
def _triples(source, batch, first, lanes, inside, stride_b, stride_n, stride_c, ACC: tl.constexpr):
    """Three numbers of each of the points first + lanes, as points and tangents have them."""
    start = source + batch * stride_b + (first + lanes) * stride_n
    step = stride_c.to(tl.int64)
    x = tl.load(start, mask=inside, other=0.0).to(ACC)
    y = tl.load(start + step, mask=inside, other=0.0).to(ACC)
    z = tl.load(start + 2 * step, mask=inside, other=0.0).to(ACC)
    return x, y, z


@triton.jit
def _corner(K: tl.constexpr, TANGENT: tl.constexpr, wx0, wx1, sx0, sx1, wy0, wy1, sy0, sy1):
    """Weight of corner K (column K % 2, row K // 2), or its derivative along the tangent that the slopes contain."""
    wx = wx0 if K % 2 == 0 else wx1
    wy = wy0 if K // 2 == 0 else wy1
    if TANGENT:
        sx = sx0 if K % 2 == 0 else sx1
        sy = sy0 if K // 2 == 0 else sy1
        return sx * wy + wx * sy
    else:
        return wx * wy


@triton.jit
def _block(blocks):
    """Batch entry and block of points of this program, in 64 bits."""
    program = tl.program_id(0)
    batch = program // blocks
    return batch.to(tl.int64), (program - batch * blocks).to(tl.int64)


@triton.jit
def _cells(column, row, stride_w, stride_h, WIDE: tl.constexpr):
    """Offset of texels from their plane's first."""
    if WIDE:
        return column.to(tl.int64) * stride_w + row.to(tl.int64) * stride_h
    else:
        return column * stride_w + row * stride_h


@triton.jit(do_not_specialize=RUN_TIME)
def sample_kernel(
    planes, points, tangent, out, count, blocks, height, width,
    plane_b, plane_p, plane_h, plane_w, point_b, point_n, point_c, tangent_b, tangent_n, tangent_c,
    C: tl.constexpr, P: tl.constexpr, AXES: tl.constexpr, ALIGN: tl.constexpr, PADDING: tl.constexpr,
    NEAREST: tl.constexpr, TANGENT: tl.constexpr, SQUARE: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    ACC: tl.constexpr, HOW: tl.constexpr, SCALE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):
    """Features of BLOCK_N points, BLOCK_C channels of them: summed over P planes times SCALE, apart, or multiplied.

    planes [B, P, C, H, W] by their strides in UNITs; points and tangent [B, N, 3] by strides; out contiguous [B, N, C],
    or [B, N, P, C] if HOW is 1; HOW 2 multiplies. AXES holds column and row axis of every plane, two bits each.
    PADDING 0 zeros, 1 border, 2 reflection. With TANGENT, the derivative of the features along it.
    """
    batch, block = _block(blocks)
    first = block * BLOCK_N
    lanes = tl.arange(0, BLOCK_N)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = lanes < count - first
    some = (channels < C)[None, :]
    x, y, z = _triples(points, batch, first, lanes, inside, point_b, point_n, point_c, ACC)
    if TANGENT:
        vx, vy, vz = _triples(tangent, batch, first, lanes, inside, tangent_b, tangent_n, tangent_c, ACC)
    planes += batch * plane_b * UNIT
    step_p = plane_p.to(tl.int64) * UNIT
    per_point: tl.constexpr = P * C if HOW == 1 else C
    out += (batch * count + first) * per_point
    targets = out + lanes[:, None] * per_point + channels[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_C], ACC)
    rows = width if SQUARE else height
    for p in tl.static_range(P):
        column, wx0, wx1, sx0, sx1 = _line(_pick(x, y, z, AXES, 2 * p), width, ALIGN, PADDING, NEAREST)
        row, wy0, wy1, sy0, sy1 = _line(_pick(x, y, z, AXES, 2 * p + 1), rows, ALIGN, PADDING, NEAREST)
        if TANGENT:
            speed_x = _pick(vx, vy, vz, AXES, 2 * p)
            speed_y = _pick(vx, vy, vz, AXES, 2 * p + 1)
            sx0, sx1, sy0, sy1 = sx0 * speed_x, sx1 * speed_x, sy0 * speed_y, sy1 * speed_y
        cell = _cells(column, row, plane_w, plane_h, WIDE)
        part = tl.zeros([BLOCK_N, BLOCK_C], ACC)
        for k in tl.static_range(1 if NEAREST else 4):
            weight = _corner(k, TANGENT, wx0, wx1, sx0, sx1, wy0, wy1, sy0, sy1)
            place = (cell + (k // 2) * plane_h + (k % 2) * plane_w)[:, None] * UNIT + channels[None, :]
            read = (inside & (weight != 0))[:, None]
            if C % BLOCK_C != 0:
                read = read & some
            part += weight[:, None] * tl.load(planes + p * step_p + place, mask=read, other=0.0).to(ACC)
        written = inside[:, None] if C % BLOCK_C == 0 else inside[:, None] & some
        if HOW == 1:
            tl.store(targets + p * C, (part * SCALE).to(out.dtype.element_ty), mask=written)
        elif HOW == 2:
            total = part if p == 0 else total * part
        else:
            total += part
    if HOW != 1:
        written = inside[:, None] if C % BLOCK_C == 0 else inside[:, None] & some
        tl.store(targets, (total * SCALE).to(out.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=RUN_TIME)
def point_gradient_kernel(
    grad, planes, points, tangent, out, count, blocks, height, width,
    plane_b, plane_p, plane_h, plane_w, point_b, point_n, point_c, tangent_b, tangent_n, tangent_c,
    C: tl.constexpr, P: tl.constexpr, AXES: tl.constexpr, ALIGN: tl.constexpr, PADDING: tl.constexpr,
    TANGENT: tl.constexpr, SQUARE: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
    SEPARATE: tl.constexpr, SCALE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):
    """Gradient [B, N, 3] of BLOCK_N points, contiguous, from that of their features; with TANGENT its derivative.

    grad is contiguous, [B, N, C] or, if SEPARATE, [B, N, P, C]; the rest as in `sample_kernel`.
    """
    batch, block = _block(blocks)
    first = block * BLOCK_N
    lanes = tl.arange(0, BLOCK_N)
    inside = lanes < count - first
    x, y, z = _triples(points, batch, first, lanes, inside, point_b, point_n, point_c, ACC)
    planes += batch * plane_b * UNIT
    step_p = plane_p.to(tl.int64) * UNIT
    per_point: tl.constexpr = P * C if SEPARATE else C
    grad += (batch * count + first) * per_point
    if TANGENT:
        vx, vy, vz = _triples(tangent, batch, first, lanes, inside, tangent_b, tangent_n, tangent_c, ACC)
    gx = tl.zeros([BLOCK_N, BLOCK_C], ACC)
    gy = tl.zeros([BLOCK_N, BLOCK_C], ACC)
    gz = tl.zeros([BLOCK_N, BLOCK_C], ACC)
    rows = width if SQUARE else height
    for start in range(0, C, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        some = (channels < C)[None, :]
        given = inside[:, None] if C % BLOCK_C == 0 else inside[:, None] & some
        for p in tl.static_range(P):
            column, wx0, wx1, sx0, sx1 = _line(_pick(x, y, z, AXES, 2 * p), width, ALIGN, PADDING, False)
            row, wy0, wy1, sy0, sy1 = _line(_pick(x, y, z, AXES, 2 * p + 1), rows, ALIGN, PADDING, False)
            if SEPARATE or p == 0:
                source = grad + (p * C if SEPARATE else 0) + lanes[:, None] * per_point + channels[None, :]
                cotangent = tl.load(source, mask=given, other=0.0).to(ACC) * SCALE
            cell = _cells(column, row, plane_w, plane_h, WIDE)
            across = tl.zeros([BLOCK_N, BLOCK_C], ACC)
            along = tl.zeros([BLOCK_N, BLOCK_C], ACC)
            for k in tl.static_range(4):
                wx = wx0 if k % 2 == 0 else wx1
                sx = sx0 if k % 2 == 0 else sx1
                wy = wy0 if k // 2 == 0 else wy1
                sy = sy0 if k // 2 == 0 else sy1
                if TANGENT:
                    column_weight = sx * sy * _pick(vx, vy, vz, AXES, 2 * p + 1)
                    row_weight = sx * sy * _pick(vx, vy, vz, AXES, 2 * p)
                else:
                    # a coordinate that cannot move what is read has no gradient, even beside one that is no number
                    column_weight = tl.where(sx == 0, 0.0, sx * wy)
                    row_weight = tl.where(sy == 0, 0.0, wx * sy)
                place = (cell + (k // 2) * plane_h + (k % 2) * plane_w)[:, None] * UNIT + channels[None, :]
                read = (inside & ((column_weight != 0) | (row_weight != 0)))[:, None]
                if C % BLOCK_C != 0:
                    read = read & some
                texel = tl.load(planes + p * step_p + place, mask=read, other=0.0).to(ACC)
                across += column_weight[:, None] * texel
                along += row_weight[:, None] * texel
            across *= cotangent
            along *= cotangent
            if (AXES >> (4 * p)) & 3 == 0:
                gx += across
            elif (AXES >> (4 * p)) & 3 == 1:
                gy += across
            else:
                gz += across
            if (AXES >> (4 * p + 2)) & 3 == 0:
                gx += along
            elif (AXES >> (4 * p + 2)) & 3 == 1:
                gy += along
            else:
                gz += along
    targets = out + ((batch * count + first) + lanes) * 3
    tl.store(targets, tl.sum(gx, 1).to(out.dtype.element_ty), mask=inside)
    tl.store(targets + 1, tl.sum(gy, 1).to(out.dtype.element_ty), mask=inside)
    tl.store(targets + 2, tl.sum(gz, 1).to(out.dtype.element_ty), mask=inside)
