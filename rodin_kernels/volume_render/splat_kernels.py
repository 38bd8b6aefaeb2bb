# mypy: ignore-errors
"""What the fused renderer's backward pass does with the gradient of a tile's features: to planes, and to points.

The samples of a tile lie close together: those of 8 x 8 pixels on one step read each texel about eight times. So their
gradients are added up on the chip first, window by window of 8 x 8 texels, as a matrix product:

    window[t, c] = sum_p hat(x_t - x_p) hat(y_t - y_p) grad[p, c],    hat(d) = max(1 - |d|, 0)

and one addition for each texel that something fell on goes to memory. Samples that lie far apart, and gradients that
are no numbers, which a product would spread over the window, are added one by one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .field_kernels import line, pick

#: Texels of a window on a line.
WINDOW = tl.constexpr(8)


@triton.jit
def hat(texel, position):
    """Share [texels, samples] that a texel has of samples at a position, both on one line."""
    return tl.maximum(1 - tl.abs(texel.to(tl.float32)[:, None] - position[None, :]), 0.0)


@triton.jit
def add_window(grad, scale, target, left, top, x, y, height, width, C: tl.constexpr, CP: tl.constexpr,
               PRECISION: tl.constexpr):
    """Adds what samples at x, y [BLOCK] (in texels) with gradients [BLOCK, CP] leave in a window, to a plane."""
    texel = tl.arange(0, WINDOW * WINDOW)
    column, row = left + texel % WINDOW, top + texel // WINDOW
    shares = hat(column, x) * hat(row, y)
    total = tl.dot(shares.to(grad.dtype), grad, input_precision=PRECISION) * scale
    touched = (tl.max(shares, 1) > 0) & (column < width) & (row < height)
    channels = tl.arange(0, CP)
    some = touched[:, None]
    if C != CP:
        some = some & (channels < C)[None, :]
    tl.atomic_add(target + (row * width + column)[:, None] * C + channels[None, :], total, mask=some, sem="relaxed")


@triton.jit
def span(first, exists, size):
    """First and last texel of a line of `size` that samples read which exist; the last before the first for none."""
    low = tl.min(tl.where(exists, first, size), 0)
    high = tl.max(tl.where(exists, first + 1, -1), 0)
    return tl.maximum(low, 0), tl.minimum(high, size - 1)


@triton.jit
def add_corner(k, grad, scale, target, column, row, fx, fy, some, height, width, C: tl.constexpr, CP: tl.constexpr):
    """Adds the gradients [BLOCK, CP] of some samples to a plane, each to its texel k (column k % 2, row k // 2)."""
    channels = tl.arange(0, CP)
    i, j = column + (k & 1), row + (k >> 1)
    weight = tl.where(k & 1 == 1, fx, 1 - fx) * tl.where(k >> 1 == 1, fy, 1 - fy) * scale
    touched = (some & (i >= 0) & (i < width) & (j >= 0) & (j < height))[:, None]
    if C != CP:
        touched = touched & (channels < C)[None, :]
    place = (j * width + i)[:, None] * C + channels[None, :]
    tl.atomic_add(target + place, weight[:, None] * grad, mask=touched, sem="relaxed")


@triton.jit
def add_to_planes(
    grad, scale, target, scene, x, y, z, active, height, width, dtype: tl.constexpr, C: tl.constexpr, CP: tl.constexpr,
    AXES: tl.constexpr, ALIGN: tl.constexpr, BORDER: tl.constexpr, PRECISION: tl.constexpr, WINDOWS: tl.constexpr,
):
    """Adds the features' gradient [BLOCK, CP] of a tile, times `scale`, to that of a scene's planes, [B, 3, H, W, C].

    Window by window, rounded to dtype, where the samples fit into at most WINDOWS of them on a plane; sample by sample
    where they do not, and for what is no number in dtype.
    """
    if WINDOWS == 0:
        # one corner of one plane at a time: all that is kept from one to the next takes registers
        for q in tl.range(0, 12, disable_licm=True):
            axes = AXES >> (4 * (q >> 2))
            column, fx, _ = line(pick(x, y, z, axes & 3), width, ALIGN, BORDER)
            row, fy, _ = line(pick(x, y, z, (axes >> 2) & 3), height, ALIGN, BORDER)
            plane = target + (scene * 3 + (q >> 2)) * height * width * C
            add_corner(q & 3, grad, scale, plane, column, row, fx, fy, active, height, width, C, CP)
    else:
        rounded = grad.to(dtype)
        near = active & (tl.sum(rounded.to(tl.float32) * 0.0, 1) == 0)
        rounded = tl.where(near[:, None], rounded, 0.0)
        for p in tl.range(0, 3, disable_licm=True):
            axes = AXES >> (4 * p)
            column, fx, _ = line(pick(x, y, z, axes & 3), width, ALIGN, BORDER)
            row, fy, _ = line(pick(x, y, z, (axes >> 2) & 3), height, ALIGN, BORDER)
            plane = target + (scene * 3 + p) * height * width * C
            left, right = span(column, near, width)
            top, bottom = span(row, near, height)
            across = tl.where(right < left, 0, right - left + WINDOW) // WINDOW
            count = across * (tl.where(bottom < top, 0, bottom - top + WINDOW) // WINDOW)
            few = count <= WINDOWS
            for i in tl.range(0, tl.where(few, count, 0), disable_licm=True):
                add_window(rounded, scale, plane, left + i % across * WINDOW, top + i // across * WINDOW, column + fx,
                           row + fy, height, width, C, CP, PRECISION)
            rest = tl.where(few, active & ~near, active)
            if tl.max(rest.to(tl.int32), 0) > 0:
                for k in tl.range(0, 4, disable_licm=True):
                    add_corner(k, grad, scale, plane, column, row, fx, fy, rest, height, width, C, CP)
