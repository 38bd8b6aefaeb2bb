# mypy: ignore-errors
"""Triton kernels of the fused renderer: what both passes share, and the forward pass.

A program marches a tile of rays front to back, one step at a time: one row of the decoder's matrix products is one ray.
Steps on which no ray of the tile has anything to decode cost an occupancy look-up and nothing else; a program ends when
all of its rays are closed. Nothing but the sums of each ray is ever written.

Positions, densities and sums are float32. The operands of the decoder's products have the type of the weights that come
in (that of the planes), their sums are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

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
def line(x, size, ALIGN: tl.constexpr, BORDER: tl.constexpr):
    """First of the two texels that coordinates inside the box read on a line, the second's share, texels per unit."""
    extent = size * 1.0
    scale = (extent - 1) * 0.5 if ALIGN else extent * 0.5
    position = (x + 1) * scale if ALIGN else (x + 1) * scale - 0.5
    slope = tl.zeros_like(x) + scale
    if BORDER:
        last = extent - 1
        slope = tl.where((position > 0) & (position < last), slope, 0.0)
        position = tl.where(position > 0, tl.where(position < last, position, last), 0.0)
    below = tl.floor(position)
    return below.to(tl.int32), position - below, slope


@triton.jit
def corner(K: tl.constexpr, column, row, height, width, fx, fy):
    """Of corner K (column K % 2, row K // 2): whether it lies on the plane, and its weight."""
    on = (column + K % 2 >= 0) & (column + K % 2 < width) & (row + K // 2 >= 0) & (row + K // 2 < height)
    wx = fx if K % 2 == 1 else 1 - fx
    wy = fy if K // 2 == 1 else 1 - fy
    return on, tl.where(on, wx * wy, 0.0)


@triton.jit
def pick(x, y, z, axis):
    """The coordinate along an axis that is known only at run time."""
    return tl.where(axis == 0, x, tl.where(axis == 1, y, z))


@triton.jit
def features(planes, x, y, z, active, height, width, plane_p, plane_h, plane_w, C: tl.constexpr, CP: tl.constexpr,
             UNIT: tl.constexpr, AXES: tl.constexpr, ALIGN: tl.constexpr, BORDER: tl.constexpr, SCALE: tl.constexpr):
    """Features [BLOCK, CP] of points in the box, 0 where not active; strides in UNITs, AXES two bits each."""
    channels = tl.arange(0, CP)
    total = tl.zeros([x.shape[0], CP], tl.float32)
    # a loop that stays one: the loads of one plane at a time are enough in flight, and registers are few
    for p in range(3):
        axes = AXES >> (4 * p)
        column, fx, _ = line(pick(x, y, z, axes & 3), width, ALIGN, BORDER)
        row, fy, _ = line(pick(x, y, z, (axes >> 2) & 3), height, ALIGN, BORDER)
        base = planes + plane_p.to(tl.int64) * p * UNIT
        cell = row * plane_h + column * plane_w
        for k in tl.static_range(4):
            on, weight = corner(k, column, row, height, width, fx, fy)
            place = (cell + (k // 2) * plane_h + (k % 2) * plane_w)[:, None] * UNIT + channels[None, :]
            read = (on & active)[:, None]
            if C != CP:
                read = read & (channels < C)[None, :]
            total += weight[:, None] * tl.load(base + place, mask=read, other=0.0).to(tl.float32)
    return total * SCALE if SCALE != 1 else total


@triton.jit
def log1p(x):
    """log(1 + x) for x in [0, 1], exact to a few units in the last place for small x as well."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def softplus(x):
    """log(1 + exp(x)); what is not a number stays so."""
    return tl.where(x < 0, 0.0, x) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def absorbed(tau):
    """1 - exp(-tau) for tau >= 0, with full relative precision for thin media."""
    series = 1 - tau * (1 / 2) * (1 - tau * (1 / 3) * (1 - tau * (1 / 4) * (1 - tau * (1 / 5) * (1 - tau * (1 / 6)
             * (1 - tau * (1 / 7))))))
    return tl.where(tau < 0.35, tau * series, 1 - tl.exp(-tau))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1 / (1 + tl.exp(-x))


@triton.jit
def activate(x, dtype: tl.constexpr, ACTIVATION: tl.constexpr):
    """Hidden activation, rounded to dtype: 0 ReLU, 1 SiLU, 2 softplus, 3 leaky ReLU."""
    if ACTIVATION == 0:
        y = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == 1:
        y = x * sigmoid(x)
    elif ACTIVATION == 2:
        # an error of 6e-8 is less than what rounding to 16 bits takes from any number over 1e-4
        y = softplus(x) if dtype == tl.float32 else tl.where(x < 0, 0.0, x) + tl.log(1 + tl.exp(-tl.abs(x)))
    else:
        y = tl.where(x > 0, x, 0.01 * x)
    return y.to(dtype)


@triton.jit
def layer(x, weight, biases, PRECISION: tl.constexpr):
    """x @ weight + bias, summed in float32; x is rounded to the weight's type. The bias is read where it is needed."""
    bias = tl.load(biases + tl.arange(0, weight.shape[1]))
    return tl.dot(x.to(weight.dtype), weight, input_precision=PRECISION) + bias[None, :]


@triton.jit
def density(raw, shift, DENSITY: tl.constexpr):
    """Density from column 0 of the last layer: 0 softplus, 1 exp, 2 exp with a bounded gradient."""
    first = (tl.arange(0, raw.shape[1]) == 0)[None, :]
    x = tl.sum(tl.where(first, raw, 0.0), 1) + shift
    return x, softplus(x) if DENSITY == 0 else tl.exp(x)


@triton.jit
def colors(raw, COLOR: tl.constexpr):
    """Colours from the other columns: 0 sigmoid, 1 clamped sigmoid, 2 none; column 0, which counts opacity, is 1."""
    first = (tl.arange(0, raw.shape[1]) == 0)[None, :]
    if COLOR == 2:
        color = raw
    else:
        color = sigmoid(raw)
        if COLOR == 1:
            color = color * 1.002 - 0.001
    return tl.where(first, 1.0, color)


@triton.jit
def matrix(source, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A whole matrix that is stored densely."""
    return tl.load(source + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])


@triton.jit(do_not_specialize=RUN_TIME)
def forward_kernel(
    planes, origins, directions, nears, fars, places, bits, seeds, weights, biases, color, depth, opacity,
    tiles, columns, rows, steps, first_ray, stop, shift, resolution, cells_b, height, width,
    plane_b, plane_p, plane_h, plane_w,
    C: tl.constexpr, CP: tl.constexpr, HIDDEN: tl.constexpr, OUT: tl.constexpr, OUTP: tl.constexpr,
    DEPTH: tl.constexpr, UNIT: tl.constexpr, AXES: tl.constexpr, ALIGN: tl.constexpr, BORDER: tl.constexpr,
    SCALE: tl.constexpr, ACTIVATION: tl.constexpr, DENSITY: tl.constexpr, COLOR: tl.constexpr, CELLS: tl.constexpr,
    JITTER: tl.constexpr, EXPLICIT: tl.constexpr, WORLD: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
    TILE_W: tl.constexpr,
):
    """Colour [B, R, OUT], depth and opacity [B, R] of a tile of rays.

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
            hidden = features(planes, x, y, z, inside, height, width, plane_p, plane_h, plane_w, C, CP, UNIT, AXES,
                              ALIGN, BORDER, SCALE)
            hidden = activate(layer(hidden, w_in, biases, PRECISION), w_in.dtype, ACTIVATION)
            if DEPTH > 1:
                hidden = activate(layer(hidden, w_mid, biases + HIDDEN, PRECISION), w_in.dtype, ACTIVATION)
            raw = layer(hidden, w_out, biases + DEPTH * HIDDEN, PRECISION)
            _, sigma = density(raw, shift, DENSITY)
            tau = tl.where(inside, sigma * (length * speed), 0.0)
            weight = light * absorbed(tau)
            total += tl.where(inside[:, None], weight[:, None] * colors(raw, COLOR), 0.0)
            along += tl.where(inside, weight * here, 0.0)
            thickness += tau
            light = tl.exp(-thickness)
        step = tl.where(state == 0, last, step + 1)
    output = tl.arange(0, OUTP)[None, :]
    tl.store(color + place[:, None] * OUT + output - 1, total, mask=exists[:, None] & (output >= 1) & (output <= OUT))
    tl.store(depth + place, along, mask=exists)
    tl.store(opacity + place, tl.sum(tl.where(output == 0, total, 0.0), 1), mask=exists)
