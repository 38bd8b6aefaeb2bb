# mypy: ignore-errors
"""Triton kernels of the fused renderer: what both passes share, and the forward pass.

A program marches a tile of rays front to back, one step at a time: one row of the decoder's matrix products is one ray.
Steps on which no ray of the tile has anything to decode cost an occupancy look-up and nothing else; a program ends when
all of its rays are closed. Nothing but the sums of each ray is ever written.

Positions, densities and sums are float32; `field_kernels` decodes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .field_kernels import activate, colors, density, features, layer, matrix, normal

#: Run-time numbers, for none of which a kernel is compiled anew.
RUN_TIME = (
    "tiles", "columns", "rows", "steps", "first_ray", "stop", "shift", "resolution", "cells_b", "height", "width",
    "plane_b", "plane_p", "plane_h", "plane_w", "programs", "scenes", "zero",
)


@triton.jit
def mix(x):
    """The 32-bit mixer of `hashed_uniform` in rays.py."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def tile_rays(tile, columns, rows, TILE_W: tl.constexpr, BLOCK: tl.constexpr):
    """Numbers of a tile's rays in their scene and which of them exist: a box of pixels, or neighbours in a list."""
    across = (columns + TILE_W - 1) // TILE_W
    lane = tl.arange(0, BLOCK)
    column = tile % across * TILE_W + lane % TILE_W
    row = tile // across * (BLOCK // TILE_W) + lane // TILE_W
    exists = (column < columns) & (row < rows)
    return row * columns + column, exists


@triton.jit
def triple(source, place, exists, OTHER: tl.constexpr):
    """Three numbers of each ray."""
    x = tl.load(source + place * 3, mask=exists, other=OTHER)
    y = tl.load(source + place * 3 + 1, mask=exists, other=OTHER)
    z = tl.load(source + place * 3 + 2, mask=exists, other=OTHER)
    return x, y, z


@triton.jit
def slab(origin, direction, enter, leave):
    """The part of [enter, leave] on which |origin + t direction| <= 1, a little wider than exact."""
    still = tl.abs(direction) < 1e-30
    inverse = 1.0 / tl.where(still, 1.0, direction)
    a = (-1.00001 - origin) * inverse
    b = (1.00001 - origin) * inverse
    low = tl.where(a < b, a, b)
    high = tl.where(a < b, b, a)
    enter = tl.where(still | (low < enter), enter, low)
    leave = tl.where(still | (high > leave), leave, high)
    return enter, leave


@triton.jit
def step_range(ox, oy, oz, dx, dy, dz, near, far, steps, exists):
    """First and last (exclusive) step on which a ray of the tile can be in the box, with room for rounding."""
    enter = tl.full(near.shape, -1e30, tl.float32)
    leave = tl.full(near.shape, 1e30, tl.float32)
    enter, leave = slab(ox, dx, enter, leave)
    enter, leave = slab(oy, dy, enter, leave)
    enter, leave = slab(oz, dz, enter, leave)
    some = exists & (enter <= leave)
    reach = far - near
    flat = reach <= 0
    most = steps * 1.0
    scale = most / tl.where(flat, 1.0, reach)
    low = tl.where(flat, 0.0, (enter - near) * scale - 2)
    high = tl.where(flat, most, (leave - near) * scale + 2)
    low = tl.where(low > 0, tl.where(low < most, low, most), 0.0)
    high = tl.where(high > 0, tl.where(high < most, high, most), 0.0)
    first = tl.min(tl.where(some, low.to(tl.int32), steps), 0)
    last = tl.max(tl.where(some, high.to(tl.int32) + 1, 0), 0)
    return first, tl.minimum(last, steps)


@triton.jit
def in_bin(key, step, JITTER: tl.constexpr):
    """Where in its bin each ray's sample lies, 0 to 1."""
    if JITTER:
        sample = (tl.zeros([1], tl.int32) + step).to(tl.uint32) * 0x9E3779B1
        return (mix(key ^ sample) >> 8).to(tl.float32) * 5.9604644775390625e-08
    else:
        return tl.full(key.shape, 0.5, tl.float32)


@triton.jit
def ray_key(seeds, scene, ray, first_ray, JITTER: tl.constexpr):
    """What each ray's numbers depend on: the seed of its scene and its own number."""
    key = ray.to(tl.uint32)
    if JITTER:
        seed = tl.load(seeds + scene)
        key = mix(mix(mix(seed.to(tl.uint32)) ^ (seed >> 32).to(tl.uint32)) ^ (ray + first_ray).to(tl.uint32))
    return key


@triton.jit
def load_rays(origins, directions, nears, fars, place, exists):
    """Origins, directions, near and far; what does not exist starts outside the box and goes nowhere."""
    ox, oy, oz = triple(origins, place, exists, 2.0)
    dx, dy, dz = triple(directions, place, exists, 0.0)
    near = tl.load(nears + place, mask=exists, other=0.0)
    far = tl.load(fars + place, mask=exists, other=0.0)
    return ox, oy, oz, dx, dy, dz, near, far


@triton.jit
def sample_at(step, steps, near, far, places, place, exists, key, EXPLICIT: tl.constexpr, JITTER: tl.constexpr):
    """Where the sample of a step lies, how much of t it stands for, and, except EXPLICIT, where in units of bins."""
    if EXPLICIT:
        here = tl.load(places + place * steps + step, mask=exists, other=0.0)
        more = (exists & (step + 1 < steps)) != 0
        following = tl.load(places + place * steps + step + 1, mask=more, other=0.0)
        following = tl.where(step + 1 < steps, following, far)
        return here, tl.where(following > here, following - here, 0.0), following
    else:
        offset = step + in_bin(key, step, JITTER)
        length = tl.where(far > near, far - near, 0.0) / tl.maximum(steps, 1)
        return near + offset * length, length, offset


@triton.jit
def point_at(here, ox, oy, oz, dx, dy, dz):
    """The sample's point and whether it lies in the box; outside it the origin stands in.

    That is decided by the box alone: what the decoder said would bring its products' layout to every address.
    """
    x, y, z = ox + here * dx, oy + here * dy, oz + here * dz
    boxed = (tl.abs(x) <= 1) & (tl.abs(y) <= 1) & (tl.abs(z) <= 1)
    return tl.where(boxed, x, 0.0), tl.where(boxed, y, 0.0), tl.where(boxed, z, 0.0), boxed


@triton.jit
def world_length(dx, dy, dz, WORLD: tl.constexpr):
    """Length of the box that a unit of t is; 1 unless WORLD."""
    if WORLD:
        return tl.sqrt(dx * dx + dy * dy + dz * dz)
    else:
        return tl.full(dx.shape, 1.0, tl.float32)


@triton.jit
def occupied(bits, resolution, x, y, z):
    """Whether points inside the box lie in cells whose bit is set."""
    scale = resolution * 0.5
    last = resolution - 1
    i = tl.minimum(((x + 1) * scale).to(tl.int32), last)
    j = tl.minimum(((y + 1) * scale).to(tl.int32), last)
    k = tl.minimum(((z + 1) * scale).to(tl.int32), last)
    cell = (i * resolution + j) * resolution + k
    return ((tl.load(bits + (cell >> 5)) >> (cell & 31)) & 1) != 0


@triton.jit
def absorbed(tau):
    """1 - exp(-tau) for tau >= 0, with full relative precision for thin media."""
    series = 1 - tau * (1 / 2) * (1 - tau * (1 / 3) * (1 - tau * (1 / 4) * (1 - tau * (1 / 5) * (1 - tau * (1 / 6)
             * (1 - tau * (1 / 7))))))
    return tl.where(tau < 0.35, tau * series, 1 - tl.exp(-tau))


@triton.jit(do_not_specialize=RUN_TIME)
def forward_kernel(
    planes, origins, directions, nears, fars, places, bits, seeds, weights, biases, color, depth, opacity,
    normals, shares, tiles, columns, rows, steps, first_ray, stop, shift, resolution, cells_b, height, width,
    plane_b, plane_p, plane_h, plane_w,
    C: tl.constexpr, CP: tl.constexpr, HIDDEN: tl.constexpr, OUT: tl.constexpr, OUTP: tl.constexpr,
    DEPTH: tl.constexpr, UNIT: tl.constexpr, AXES: tl.constexpr, ALIGN: tl.constexpr, BORDER: tl.constexpr,
    SCALE: tl.constexpr, ACTIVATION: tl.constexpr, DENSITY: tl.constexpr, COLOR: tl.constexpr, CELLS: tl.constexpr,
    JITTER: tl.constexpr, EXPLICIT: tl.constexpr, WORLD: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
    TILE_W: tl.constexpr, NORMALS: tl.constexpr, WEIGHTS: tl.constexpr,
):
    """Colour [B, R, OUT], depth and opacity [B, R] of a tile of rays, if asked for normals [B, R, 3] and weights.

    Weights go to `shares` [B, R, S], which holds 0 where nothing is decoded.

    planes [B, 3, C, H, W] by strides in UNITs, channels innermost; rays contiguous, float32; places [B, R, S] if
    EXPLICIT; bits the occupancy, 32 cells in a word; weights of the DEPTH hidden layers and the last one after each
    other, each [in, out] and padded with 0 to CP, HIDDEN, OUTP; biases likewise.
    """
    program = tl.program_id(0)
    scene = (program // tiles).to(tl.int64)
    ray, exists = tile_rays(program % tiles, columns, rows, TILE_W, BLOCK)
    place = scene * (columns * rows) + ray
    ox, oy, oz, dx, dy, dz, near, far = load_rays(origins, directions, nears, fars, place, exists)
    speed = world_length(dx, dy, dz, WORLD)
    key = ray_key(seeds, scene, ray, first_ray, JITTER)
    step = tl.zeros([], tl.int32)
    last = step + steps
    if not EXPLICIT:
        step, last = step_range(ox, oy, oz, dx, dy, dz, near, far, steps, exists)
    w_in = matrix(weights, CP, HIDDEN)
    to_mid = weights + CP * HIDDEN
    to_out = to_mid + (DEPTH - 1) * HIDDEN * HIDDEN
    w_out = matrix(to_out, HIDDEN, OUTP)
    if DEPTH > 1:
        w_mid = matrix(to_mid, HIDDEN, HIDDEN)
    planes += scene * plane_b * UNIT
    bits += scene * cells_b
    thickness = tl.zeros([BLOCK], tl.float32)
    light = tl.full([BLOCK], 1.0, tl.float32)
    along = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK, OUTP], tl.float32)
    if NORMALS:
        sum_x, sum_y, sum_z = along, along, along
    while step < last:
        here, length, _ = sample_at(step, steps, near, far, places, place, exists, key, EXPLICIT, JITTER)
        x, y, z, boxed = point_at(here, ox, oy, oz, dx, dy, dz)
        # not >=, so that a ray that is no number any more stays open and shows it
        open = exists & ~(light < stop)
        inside = boxed & open
        if CELLS:
            inside = inside & occupied(bits, resolution, x, y, z)
        state = tl.max(tl.where(inside, 2, tl.where(open, 1, 0)), 0)
        if state == 2:
            feature = features(planes, x, y, z, inside, height, width, plane_p, plane_h, plane_w, C, CP, UNIT, AXES,
                               ALIGN, BORDER, SCALE)
            before = layer(feature, w_in, biases, PRECISION)
            hidden = activate(before, w_in.dtype, ACTIVATION)
            deeper, middle = before, w_in
            if DEPTH > 1:
                middle = w_mid
                deeper = layer(hidden, w_mid, biases + HIDDEN, PRECISION)
                hidden = activate(deeper, w_in.dtype, ACTIVATION)
            raw = layer(hidden, w_out, biases + DEPTH * HIDDEN, PRECISION)
            logit, sigma = density(raw, shift, DENSITY)
            tau = tl.where(inside, sigma * (length * speed), 0.0)
            weight = light * absorbed(tau)
            total += tl.where(inside[:, None], weight[:, None] * colors(raw, COLOR), 0.0)
            along += tl.where(inside, weight * here, 0.0)
            if WEIGHTS:
                tl.store(shares + place * steps + step, weight, mask=inside)
            if NORMALS:
                nx, ny, nz = normal(logit, before, deeper, w_in, middle, to_out, planes, x, y, z, inside, height, width,
                                    plane_p, plane_h, plane_w, OUTP, C, UNIT, AXES, ALIGN, BORDER, SCALE, ACTIVATION,
                                    DENSITY, DEPTH, PRECISION)
                sum_x += tl.where(inside, weight * nx, 0.0)
                sum_y += tl.where(inside, weight * ny, 0.0)
                sum_z += tl.where(inside, weight * nz, 0.0)
            thickness += tau
            light = tl.exp(-thickness)
        step = tl.where(state == 0, last, step + 1)
    output = tl.arange(0, OUTP)[None, :]
    tl.store(color + place[:, None] * OUT + output - 1, total, mask=exists[:, None] & (output >= 1) & (output <= OUT))
    tl.store(depth + place, along, mask=exists)
    if NORMALS:
        tl.store(normals + place * 3, sum_x, mask=exists)
        tl.store(normals + place * 3 + 1, sum_y, mask=exists)
        tl.store(normals + place * 3 + 2, sum_z, mask=exists)
    tl.store(opacity + place, tl.sum(tl.where(output == 0, total, 0.0), 1), mask=exists)
