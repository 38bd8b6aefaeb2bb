"""Triton kernels of the avatars: run a recorded program for all points, march rays through the baked distances."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _arctangent2(y, x):
    """atan2 in float32 after Cephes: reduced to [0, tan(pi/8)], then a polynomial."""
    ax, ay = tl.abs(x), tl.abs(y)
    high, low = tl.maximum(ax, ay), tl.minimum(ax, ay)
    ratio = low / tl.maximum(high, 1e-30)
    steep = ratio > 0.4142135623730950
    ratio = tl.where(steep, (ratio - 1.0) / (ratio + 1.0), ratio)
    z = ratio * ratio
    angle = ((8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1) * z - 3.33329491539e-1
    angle = angle * z * ratio + ratio
    angle = tl.where(steep, angle + 0.78539816339744831, angle)
    angle = tl.where(ay > ax, 1.57079632679489662 - angle, angle)
    angle = tl.where(x < 0, 3.14159265358979324 - angle, angle)
    return tl.where(y < 0, -angle, angle)


@triton.jit
def _one(op, a, constant, table):
    """Instructions of one operand, in the order of `tape.ONE` from the third on."""
    first, second = tl.load(constant + 6), tl.load(constant + 7)
    r = a
    if op == 11:
        r = tl.minimum(tl.maximum(a, first), second)
    elif op == 4:
        r = tl.abs(a)
    elif op == 12:
        r = tl.where(a > 0, 1.0, 0.0)
    elif op == 3:
        r = tl.sqrt(a)
    elif op == 5:
        r = tl.sin(a)
    elif op == 6:
        r = tl.cos(a)
    elif op == 7:
        r = tl.exp(a)
    elif op == 8:
        r = tl.exp2(first * tl.log2(a))
    elif op == 9:
        r = tl.floor(a + 0.5)
    elif op == 10:
        r = tl.where(a > 0, 1.0, tl.where(a < 0, -1.0, 0.0))
    elif op == 2:
        place = first + tl.minimum(tl.maximum(tl.floor(a + 0.5), 0.0), second)
        r = tl.load(table + place.to(tl.int32))
    return r


@triton.jit
def _two(op, a, b, constant):
    """Instructions of two operands, in the order of `tape.TWO`."""
    r = a + b
    if op == 17:
        r = a * b
    elif op == 18:
        r = tl.minimum(a, b)
    elif op == 19:
        width, share = tl.load(constant + 6), tl.load(constant + 7)
        h = tl.maximum(width - tl.abs(a - b), 0.0)
        r = tl.minimum(a, b) - h * h * share
    elif op == 20:
        r = a / b
    elif op == 21:
        r = tl.sqrt(a * a + b * b)
    elif op == 22:
        r = _arctangent2(a, b)
    return r


@triton.jit
def _three(op, a, b, c):
    """Instructions of three operands, in the order of `tape.THREE`."""
    r = tl.where(a > 0.5, b, c)
    if op == 32:
        r = tl.sqrt(a * a + b * b + c * c)
    return r


@triton.jit(do_not_specialize=["rows", "count", "registers"])
def play(code, constants, table, inputs, outputs, scratch, rows, count, registers, BLOCK: tl.constexpr):
    """Run `rows` instructions for `count` points: inputs [I, count] to outputs [O, count].

    Registers lie in memory, `scratch` [programs, registers, BLOCK]. BLOCK is the number of threads: each thread reads
    only what it wrote itself, so no barrier is needed.
    """
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    register = scratch + program * registers * BLOCK + lane
    block = program
    while block * BLOCK < count:
        index = block * BLOCK + lane
        live = index < count
        row = 0
        while row < rows:
            word, constant = code + row * 5, constants + row * 8
            op, target = tl.load(word), tl.load(word + 1)
            if op == 0:
                number = tl.load(constant + 6).to(tl.int64)
                value = tl.load(inputs + number * count + index, mask=live, other=0.0)
                tl.store(register + target * BLOCK, value)
            else:
                a = tl.load(register + tl.load(word + 2) * BLOCK) * tl.load(constant) + tl.load(constant + 1)
                if op == 1:
                    number = tl.load(constant + 6).to(tl.int64)
                    tl.store(outputs + number * count + index, a, mask=live)
                else:
                    if op < 16:
                        r = _one(op, a, constant, table)
                    else:
                        b = tl.load(register + tl.load(word + 3) * BLOCK) * tl.load(constant + 2) + tl.load(
                            constant + 3)
                        if op < 32:
                            r = _two(op, a, b, constant)
                        else:
                            c = tl.load(register + tl.load(word + 4) * BLOCK) * tl.load(constant + 4) + tl.load(
                                constant + 5)
                            r = _three(op, a, b, c)
                    tl.store(register + target * BLOCK, r)
            row += 1
        block += tl.num_programs(0)


@triton.jit
def _lookup(grid, x, y, z, live, SIZE: tl.constexpr):
    """Trilinear interpolation of grid [SIZE, SIZE, SIZE] (z, y, x) over the box [-1, 1]^3, constant beyond it."""
    half: tl.constexpr = (SIZE - 1) / 2
    x = tl.minimum(tl.maximum((x + 1.0) * half, 0.0), SIZE - 1.0)
    y = tl.minimum(tl.maximum((y + 1.0) * half, 0.0), SIZE - 1.0)
    z = tl.minimum(tl.maximum((z + 1.0) * half, 0.0), SIZE - 1.0)
    i = tl.minimum(x.to(tl.int32), SIZE - 2)
    j = tl.minimum(y.to(tl.int32), SIZE - 2)
    k = tl.minimum(z.to(tl.int32), SIZE - 2)
    u, v, w = x - i.to(tl.float32), y - j.to(tl.float32), z - k.to(tl.float32)
    at = grid + (k * SIZE + j) * SIZE + i
    near = _row(at, u, live) * (1.0 - v) + _row(at + SIZE, u, live) * v
    deep = at + SIZE * SIZE
    away = _row(deep, u, live) * (1.0 - v) + _row(deep + SIZE, u, live) * v
    return near * (1.0 - w) + away * w


@triton.jit
def _row(at, u, live):
    """Between a node and the next along x."""
    return tl.load(at, mask=live, other=0.0) * (1.0 - u) + tl.load(at + 1, mask=live, other=0.0) * u


@triton.jit(do_not_specialize=["count"])
def march(grid, origins, directions, near, far, landed, count, close, stride, STEPS: tl.constexpr,
          SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """`pictures.trace`'s steps for `count` rays: where each lands, -1 where it misses."""
    ray = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = ray < count
    ox, dx = tl.load(origins + ray * 3, mask=live, other=0.0), tl.load(directions + ray * 3, mask=live, other=0.0)
    oy = tl.load(origins + ray * 3 + 1, mask=live, other=0.0)
    dy = tl.load(directions + ray * 3 + 1, mask=live, other=0.0)
    oz = tl.load(origins + ray * 3 + 2, mask=live, other=0.0)
    dz = tl.load(directions + ray * 3 + 2, mask=live, other=0.0)
    t, end = tl.load(near + ray, mask=live, other=0.0), tl.load(far + ray, mask=live, other=0.0)
    result = tl.full((BLOCK,), -1.0, tl.float32)
    going = live & (end > t)
    step = 0
    left = tl.max(going.to(tl.int32), 0)
    while (step < STEPS) & (left > 0):
        gap = _lookup(grid, ox + t * dx, oy + t * dy, oz + t * dz, going, SIZE)
        hit = gap < close
        t = tl.where(going, t + tl.where(hit, gap, tl.maximum(gap * 0.92, stride)), t)
        result = tl.where(going & hit, t, result)
        going = going & (gap >= close) & (t < end)
        left = tl.max(going.to(tl.int32), 0)
        step += 1
    tl.store(landed + ray, result, mask=live)
