# mypy: ignore-errors
"""Triton functions of the field that planes and a decoder make, at the samples of a tile: its value and its slopes.

Positions and densities are float32. The operands of the decoder's products have the type of the weights that come in
(that of the planes), their sums are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
def through(grad, before, ACTIVATION: tl.constexpr):
    """Gradient before a hidden activation, from that after it and the activation's input."""
    if ACTIVATION == 0:
        return tl.where(before > 0, grad, 0.0)
    elif ACTIVATION == 1:
        part = sigmoid(before)
        return grad * (part * (1 + before * (1 - part)))
    elif ACTIVATION == 2:
        return grad * sigmoid(before)
    else:
        return tl.where(before > 0, grad, 0.01 * grad)


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
def density_slope(x, DENSITY: tl.constexpr):
    """Derivative of the density in what `density` returned first."""
    if DENSITY == 0:
        return sigmoid(x)
    elif DENSITY == 1:
        return tl.exp(x)
    else:
        return tl.exp(tl.where(x > 15, 15.0, x))


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


@triton.jit
def point_gradients(
    grad, scale, planes, x, y, z, active, height, width, plane_p, plane_h, plane_w, C: tl.constexpr, CP: tl.constexpr,
    UNIT: tl.constexpr, AXES: tl.constexpr, ALIGN: tl.constexpr, BORDER: tl.constexpr,
):
    """The points' gradient, three times [BLOCK], from that of their features [BLOCK, CP] times `scale`."""
    channels = tl.arange(0, CP)
    gx = tl.zeros([x.shape[0]], tl.float32)
    gy = tl.zeros([x.shape[0]], tl.float32)
    gz = tl.zeros([x.shape[0]], tl.float32)
    for q in tl.range(0, 12, disable_licm=True):
        p, across, down = q >> 2, q & 1, (q >> 1) & 1
        axes = AXES >> (4 * p)
        column, fx, slope_x = line(pick(x, y, z, axes & 3), width, ALIGN, BORDER)
        row, fy, slope_y = line(pick(x, y, z, (axes >> 2) & 3), height, ALIGN, BORDER)
        column += across
        row += down
        touched = (active & (column >= 0) & (column < width) & (row >= 0) & (row < height))[:, None]
        if C != CP:
            touched = touched & (channels < C)[None, :]
        base = planes + plane_p.to(tl.int64) * p * UNIT
        place = (row * plane_h + column * plane_w)[:, None] * UNIT + channels[None, :]
        value = tl.load(base + place, mask=touched, other=0.0).to(tl.float32)
        product = tl.sum(tl.where(touched, grad * value, 0.0), 1)
        along_x = product * tl.where(down == 1, fy, 1 - fy) * slope_x * (2 * across - 1)
        along_y = product * tl.where(across == 1, fx, 1 - fx) * slope_y * (2 * down - 1)
        gx += tl.where(axes & 3 == 0, along_x, 0.0) + tl.where((axes >> 2) & 3 == 0, along_y, 0.0)
        gy += tl.where(axes & 3 == 1, along_x, 0.0) + tl.where((axes >> 2) & 3 == 1, along_y, 0.0)
        gz += tl.where(axes & 3 == 2, along_x, 0.0) + tl.where((axes >> 2) & 3 == 2, along_y, 0.0)
    return gx * scale, gy * scale, gz * scale


@triton.jit
def normal(
    logit, before, deeper, w_in, w_mid, to_out, planes, x, y, z, inside, height, width, plane_p, plane_h, plane_w,
    OUTP: tl.constexpr, C: tl.constexpr, UNIT: tl.constexpr, AXES: tl.constexpr, ALIGN: tl.constexpr,
    BORDER: tl.constexpr, SCALE: tl.constexpr, ACTIVATION: tl.constexpr, DENSITY: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Minus the density's gradient at points, three times [BLOCK], of length 1 (0 where it has no direction).

    logit: what `density` returned first; before, deeper: the hidden layers before their activation.
    """
    row = tl.load(to_out + tl.arange(0, w_in.shape[1]) * OUTP).to(tl.float32)
    # the density's own slope comes in at the end, where it overflows nothing
    grad = tl.zeros([x.shape[0], w_in.shape[1]], tl.float32) + row[None, :]
    if DEPTH > 1:
        grad = through(grad, deeper, ACTIVATION).to(w_in.dtype)
        grad = tl.dot(grad, tl.trans(w_mid), input_precision=PRECISION)
    grad = through(grad, before, ACTIVATION).to(w_in.dtype)
    grad = tl.dot(grad, tl.trans(w_in), input_precision=PRECISION)
    gx, gy, gz = point_gradients(grad, density_slope(logit, DENSITY) * -SCALE, planes, x, y, z, inside, height, width,
                                 plane_p, plane_h, plane_w, C, w_in.shape[0], UNIT, AXES, ALIGN, BORDER)
    length = tl.sqrt(gx * gx + gy * gy + gz * gz)
    inverse = 1 / tl.where(length < 1e-12, 1e-12, length)
    return gx * inverse, gy * inverse, gz * inverse
