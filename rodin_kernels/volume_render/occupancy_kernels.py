# mypy: ignore-errors
"""Triton kernel of the occupancy grid: planes and decoder in, one bit for each cell out, in one launch.

A program looks at BLOCK cells that follow each other, one row of the decoder's products each, part by part until all
of them are known to be occupied, packs what it found into words, and adds each word to those of its neighbours. What is
looked at is either the middle of a part, or all of it: then every number is an interval, a centre and a radius, whose
products are two, and whatever float32 may have rounded away is added to the radius (`intervals.py` says how much).
All is float32, whatever the planes' type.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .field_kernels import activate, corner, pick, softplus

#: Run-time numbers, for none of which the kernel is compiled anew.
RUN_TIME = (
    "blocks", "words", "resolution", "parts", "dilate", "threshold", "shift", "height", "width", "across", "down",
    "plane_b", "plane_p", "plane_h", "plane_w",
)
#: As in intervals.py: what rounding is worth, how far a cell reaches beyond its faces, where SiLU turns and its depth.
SLACK = tl.constexpr(2.0**-15)
MARGIN = tl.constexpr(1e-5)
SILU_TURN = tl.constexpr(-1.2784645)
SILU_LEAST = tl.constexpr(-0.27847)


@triton.jit
def widened(centre, radius):
    """A radius that holds what rounding has done to the interval so far."""
    return radius * (1 + 2 * SLACK) + SLACK * tl.abs(centre)


@triton.jit
def position(x, size, ALIGN: tl.constexpr, BORDER: tl.constexpr):
    """Where on a line of texels a coordinate of the box reads."""
    extent = size * 1.0
    place = (x + 1) * ((extent - 1) * 0.5) if ALIGN else (x + 1) * (extent * 0.5) - 0.5
    if BORDER:
        place = tl.minimum(tl.maximum(place, 0.0), extent - 1)
    return place


@triton.jit
def read(plane, px, py, exists, height, width, plane_h, plane_w, C: tl.constexpr, CP: tl.constexpr,
         UNIT: tl.constexpr):
    """A plane's features [BLOCK, CP] at positions px along its columns and py along its rows."""
    channels = tl.arange(0, CP)
    left, top = tl.floor(px), tl.floor(py)
    column, row = left.to(tl.int32), top.to(tl.int32)
    total = tl.zeros([px.shape[0], CP], tl.float32)
    for k in tl.static_range(4):
        on, weight = corner(k, column, row, height, width, px - left, py - top)
        place = ((row + k // 2) * plane_h + (column + k % 2) * plane_w)[:, None] * UNIT + channels[None, :]
        mask = (on & exists)[:, None]
        if C != CP:
            mask = mask & (channels < C)[None, :]
        total += weight[:, None] * tl.load(plane + place, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def part_of_plane(plane, x0, x1, y0, y1, exists, height, width, across, down, plane_h, plane_w, C: tl.constexpr,
                  CP: tl.constexpr, UNIT: tl.constexpr, ALIGN: tl.constexpr, BORDER: tl.constexpr,
                  BOUND: tl.constexpr):
    """Centre and radius of a plane's features over [x0, x1] x [y0, y1]; without BOUND the features at x0, y0, twice.

    Between lines of texels the features are bilinear: the extremes lie on corners of the rectangle and on texels.
    """
    left, top = position(x0, width, ALIGN, BORDER), position(y0, height, ALIGN, BORDER)
    if BOUND:
        right, bottom = position(x1, width, ALIGN, BORDER), position(y1, height, ALIGN, BORDER)
        least = tl.full([x0.shape[0], CP], float("inf"), tl.float32)
        most = tl.full([x0.shape[0], CP], float("-inf"), tl.float32)
        for i in range(across * down):
            px = tl.minimum(tl.maximum(tl.floor(left) + i % across, left), right)
            py = tl.minimum(tl.maximum(tl.floor(top) + i // across, top), bottom)
            value = read(plane, px, py, exists, height, width, plane_h, plane_w, C, CP, UNIT)
            least = tl.minimum(least, value, propagate_nan=tl.PropagateNan.ALL)
            most = tl.maximum(most, value, propagate_nan=tl.PropagateNan.ALL)
        centre = (least + most) * 0.5
        return centre, widened(centre, (most - least) * 0.5)
    else:
        centre = read(plane, left, top, exists, height, width, plane_h, plane_w, C, CP, UNIT)
        return centre, centre


@triton.jit
def product(centre, radius, weights, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
            BOUND: tl.constexpr):
    """Centre and radius [BLOCK, COLUMNS] of an interval times a matrix; without BOUND one product, twice."""
    weight = tl.load(weights + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])
    out = tl.dot(centre, weight, input_precision=PRECISION)
    if BOUND:
        return out, tl.dot(widened(centre, radius), tl.abs(weight), input_precision=PRECISION)
    else:
        return out, out


@triton.jit
def activated(centre, radius, biases, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, BOUND: tl.constexpr):
    """Centre and radius after bias and activation: all of them rise, but for SiLU, which falls before it does."""
    bias = tl.load(biases + tl.arange(0, WIDTH))[None, :]
    centre += bias
    if BOUND:
        radius += SLACK * tl.abs(bias)
        first, second = centre - radius, centre + radius
        low, high = activate(first, tl.float32, ACTIVATION), activate(second, tl.float32, ACTIVATION)
        if ACTIVATION == 1:
            turns = (first < SILU_TURN) & (second > SILU_TURN)
            most = tl.maximum(low, high, propagate_nan=tl.PropagateNan.ALL)
            low = tl.where(turns, SILU_LEAST, tl.minimum(low, high, propagate_nan=tl.PropagateNan.ALL))
            high = most
        return (low + high) * 0.5, (high - low) * 0.5
    else:
        centre = activate(centre, tl.float32, ACTIVATION)
        return centre, centre


@triton.jit
def hidden_layer(planes, x0, y0, z0, x1, y1, z1, exists, weights, height, width, across, down, plane_p, plane_h,
                 plane_w, C: tl.constexpr, CP: tl.constexpr, HIDDEN: tl.constexpr, UNIT: tl.constexpr,
                 AXES: tl.constexpr, ALIGN: tl.constexpr, BORDER: tl.constexpr, HOW: tl.constexpr,
                 SCALE: tl.constexpr, PRECISION: tl.constexpr, BOUND: tl.constexpr):
    """The first layer's products over a part of each cell: HOW 0 of the planes' sum, 1 of all side by side, 2 of their
    product."""
    centre = tl.full([x0.shape[0], CP], 1.0 if HOW == 2 else 0.0, tl.float32)
    radius = tl.zeros([x0.shape[0], CP], tl.float32)
    out = tl.zeros([x0.shape[0], HIDDEN], tl.float32)
    reach = tl.zeros([x0.shape[0], HIDDEN], tl.float32)
    # a loop that stays one, so that few registers hold one plane at a time
    for p in range(3):
        column, row = (AXES >> (4 * p)) & 3, (AXES >> (4 * p + 2)) & 3
        own, wide = part_of_plane(
            planes + plane_p.to(tl.int64) * p * UNIT, pick(x0, y0, z0, column), pick(x1, y1, z1, column),
            pick(x0, y0, z0, row), pick(x1, y1, z1, row), exists, height, width, across, down, plane_h, plane_w, C,
            CP, UNIT, ALIGN, BORDER, BOUND)
        if HOW == 0:
            centre += own * SCALE
            radius += wide * SCALE
        elif HOW == 1:
            more, further = product(own, wide, weights + p * CP * HIDDEN, CP, HIDDEN, PRECISION,
                                    BOUND)
            out += more
            if BOUND:
                reach += further
        else:
            radius = tl.abs(centre) * wide + radius * (tl.abs(own) + wide)
            centre *= own
            radius = widened(centre, radius)
    if HOW != 1:
        out, reach = product(centre, radius, weights, CP, HIDDEN, PRECISION, BOUND)
    return out, reach


@triton.jit
def span(index, count, BOUND: tl.constexpr):
    """The coordinates of part `index` of `count` along an axis: a little beyond its ends, or its middle twice."""
    if BOUND:
        size = 2.0 / count
        low = tl.maximum(index * size - 1 - MARGIN, -1.0)
        return low, tl.minimum((index + 1) * size - 1 + MARGIN, 1.0)
    else:
        middle = (2 * index + 1) * 1.0 / count - 1
        return middle, middle


@triton.jit
def add_to_neighbours(bits, hit, i, j, k, first, words, resolution, dilate, BLOCK: tl.constexpr):
    """Set the bits of the occupied cells and of all cells up to `dilate` away along each axis.

    All 32 cells of a word move by the same distance, so a word's bits end in two neighbouring words.
    """
    lane = tl.arange(0, BLOCK)
    word = (first >> 5) + tl.arange(0, BLOCK // 32)
    side = 2 * dilate + 1
    for n in range(side * side * side):
        di, dj, dk = n // (side * side) - dilate, n // side % side - dilate, n % side - dilate
        inside = (i + di >= 0) & (i + di < resolution) & (j + dj >= 0) & (j + dj < resolution)
        inside = inside & (k + dk >= 0) & (k + dk < resolution)
        own = tl.where(inside, hit, 0).to(tl.uint32) << (lane & 31).to(tl.uint32)
        packed = tl.sum(tl.reshape(own, [BLOCK // 32, 32]), 1).to(tl.uint32)
        move = (di * resolution + dj) * resolution + dk
        rest = (tl.zeros([BLOCK // 32], tl.int32) + (move & 31)).to(tl.uint32)
        low = packed << rest
        # in two shifts, because one by 32 means nothing
        high = (packed >> 1) >> (31 - rest)
        target = word + (move >> 5)
        # what is set lies inside the grid, so its word does; the others may not
        tl.atomic_or(bits + target, low.to(tl.int32, bitcast=True), mask=low != 0, sem="relaxed")
        tl.atomic_or(bits + target + 1, high.to(tl.int32, bitcast=True), mask=high != 0, sem="relaxed")


@triton.jit(do_not_specialize=RUN_TIME)
def occupancy_kernel(
    planes, weights, biases, bits, blocks, words, resolution, parts, dilate, threshold, shift, height, width, across,
    down, plane_b, plane_p, plane_h, plane_w,
    C: tl.constexpr, CP: tl.constexpr, HIDDEN: tl.constexpr, DEPTH: tl.constexpr, UNIT: tl.constexpr,
    AXES: tl.constexpr, ALIGN: tl.constexpr, BORDER: tl.constexpr, HOW: tl.constexpr, SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr, DENSITY: tl.constexpr, PRECISION: tl.constexpr, BOUND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Set the bits of cells whose density exceeds the threshold, and of their neighbours; bits [B, words] come as 0.

    planes [B, 3, C, H, W] by strides in UNITs, channels innermost; weights of the DEPTH hidden layers [in, out] one
    after the other, padded with 0 to CP (three of them if HOW is 1) and HIDDEN, then the HIDDEN that make the density;
    biases likewise, then the density's. Cell (i, j, k) is bit (i G + j) G + k, 32 in a word; it is looked at in
    parts^3 parts. across, down: places on a line along columns and rows where a part may have its extremes, at most.
    """
    program = tl.program_id(0)
    scene = (program // blocks).to(tl.int64)
    first = program % blocks * BLOCK
    cell = first + tl.arange(0, BLOCK)
    exists = cell < resolution * resolution * resolution
    i, j, k = cell // (resolution * resolution), cell // resolution % resolution, cell % resolution
    planes += scene * plane_b * UNIT
    hit = tl.zeros([BLOCK], tl.int32)
    part = tl.zeros([], tl.int32)
    last = part + parts * parts * parts
    while part < last:
        to_mid = weights + CP * HIDDEN * (3 if HOW == 1 else 1)
        x0, x1 = span(i * parts + part // (parts * parts), resolution * parts, BOUND)
        y0, y1 = span(j * parts + part // parts % parts, resolution * parts, BOUND)
        z0, z1 = span(k * parts + part % parts, resolution * parts, BOUND)
        centre, radius = hidden_layer(planes, x0, y0, z0, x1, y1, z1, exists, weights, height, width, across, down,
                                      plane_p, plane_h, plane_w, C, CP, HIDDEN, UNIT, AXES, ALIGN, BORDER, HOW,
                                      SCALE, PRECISION, BOUND)
        centre, radius = activated(centre, radius, biases, HIDDEN, ACTIVATION, BOUND)
        for layer in tl.static_range(1, DEPTH):
            centre, radius = product(centre, radius, to_mid + (layer - 1) * HIDDEN * HIDDEN, HIDDEN, HIDDEN, PRECISION,
                                     BOUND)
            centre, radius = activated(centre, radius, biases + layer * HIDDEN, HIDDEN, ACTIVATION, BOUND)
        weight = tl.load(to_mid + (DEPTH - 1) * HIDDEN * HIDDEN + tl.arange(0, HIDDEN))[None, :]
        bias = tl.load(biases + DEPTH * HIDDEN)
        raw = tl.sum(centre * weight, 1) + bias + shift
        if BOUND:
            raw += tl.sum(widened(centre, radius) * tl.abs(weight), 1) + SLACK * (tl.abs(bias) + tl.abs(shift))
        sigma = softplus(raw) if DENSITY == 0 else tl.exp(raw)
        # not >, so that what is not a number counts
        hit = hit | tl.where(exists & ~(sigma <= threshold), 1, 0)
        known = tl.min(tl.where(exists, hit, 1), 0)
        part = tl.where(known == 1, last, part + 1)
    add_to_neighbours(bits + scene * words, hit, i, j, k, first, words, resolution, dilate, BLOCK)
