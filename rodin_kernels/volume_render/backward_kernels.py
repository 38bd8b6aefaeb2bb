# mypy: ignore-errors
"""Triton kernel of the fused renderer's backward pass: it marches every tile again and keeps sums along rays only.

With the weights w_i, the transmittance T_i before and T_{i+1} after a sample, and a_i the product of what sample i adds
(its colour, its t, 1) with the cotangents of the sums, the gradient of an optical thickness is

    dL/dtau_i = T_{i+1} a_i - sum_{j>i} w_j a_j.

The sum over all j is known from the forward pass, so one pass front to back has every suffix by subtraction. Nothing is
divided by a transmittance. Programs stay and take tile after tile, the decoder's gradients in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .field_kernels import (
    activate,
    colors,
    density,
    density_slope,
    features,
    layer,
    matrix,
    point_gradients,
    sigmoid,
    through,
)
from .kernels import (
    RUN_TIME,
    absorbed,
    load_rays,
    occupied,
    point_at,
    ray_key,
    sample_at,
    step_range,
    tile_rays,
    world_length,
)
from .splat_kernels import add_to_planes


@triton.jit
def again(kept, source, FRESH: tl.constexpr):
    """A weight: what is kept, or, where operands of products lie in registers, FRESH from memory."""
    if FRESH:
        return matrix(source, kept.shape[0], kept.shape[1])
    else:
        return kept


@triton.jit
def outer(grad, x, total, target, TURNED: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr):
    """`total` and the gradient [out, in] of a layer's weight, from its output's gradient and its input.

    Unless it is to KEEP, it goes to memory that no other program touches instead, [in, out] if TURNED: for products
    whose operands lie in registers, which leave none for it.
    """
    if not KEEP:
        part = tl.dot(tl.trans(grad), x, input_precision=PRECISION)
        rows = tl.arange(0, part.shape[0])[:, None]
        columns = tl.arange(0, part.shape[1])[None, :]
        place = columns * part.shape[0] + rows if TURNED else rows * part.shape[1] + columns
        tl.atomic_add(target + place, part, sem="relaxed")
        return total
    else:
        return tl.dot(tl.trans(grad), x, total, input_precision=PRECISION)


@triton.jit
def outer_ones(grad, total, target, KEEP: tl.constexpr, PRECISION: tl.constexpr):
    """Likewise for the bias: multiplied by ones it comes out of the tensor cores, sixteen times the same."""
    if not KEEP:
        tl.atomic_add(target + tl.arange(0, grad.shape[1]), tl.sum(grad, 0), sem="relaxed")
        return total
    else:
        ones = tl.full([grad.shape[0], 16], 1.0, grad.dtype)
        return tl.dot(tl.trans(grad), ones, total, input_precision=PRECISION)


@triton.jit
def raw_gradient(raw, x, sigma_grad, color_grad, DENSITY: tl.constexpr, COLOR: tl.constexpr):
    """Gradient of the last layer [BLOCK, OUTP] from that of the density [BLOCK] and of its columns after activation."""
    slope = density_slope(x, DENSITY)
    first = (tl.arange(0, raw.shape[1]) == 0)[None, :]
    if COLOR != 2:
        part = sigmoid(raw)
        part = part * (1 - part)
        color_grad = color_grad * part * 1.002 if COLOR == 1 else color_grad * part
    return tl.where(first, (sigma_grad * slope)[:, None], color_grad)


@triton.jit
def cotangents(grad_color, grad_opacity, place, exists, OUT: tl.constexpr, OUTP: tl.constexpr):
    """Those of opacity (column 0) and colour, as `colors` orders them."""
    output = tl.arange(0, OUTP)[None, :]
    some = exists[:, None] & (output >= 1) & (output <= OUT)
    color = tl.load(grad_color + place[:, None] * OUT + output - 1, mask=some, other=0.0)
    return tl.where(output == 0, tl.load(grad_opacity + place, mask=exists, other=0.0)[:, None], color)


@triton.jit
def place_gradients(grad_nears, grad_fars, grad_places, g_here, g_length, near, far, here, offset, place, step, steps,
                    inside, EXPLICIT: tl.constexpr):
    """Adds what a sample's place and its length (in units of t) are worth to near, far and explicit places.

    offset is the following place, or the place in units of bins, as `sample_at` says.
    """
    if EXPLICIT:
        g_length = tl.where(offset >= here, g_length, 0.0)
        inner = (inside & (step + 1 < steps)) != 0
        final = (inside & (step + 1 == steps)) != 0
        at = grad_places + place * steps + step
        tl.atomic_add(at, g_here - g_length, mask=inside, sem="relaxed")
        tl.atomic_add(at + 1, g_length, mask=inner, sem="relaxed")
        tl.atomic_add(grad_fars + place, g_length, mask=final, sem="relaxed")
    else:
        g_far = tl.where(far >= near, (g_here * offset + g_length) / steps, 0.0)
        tl.atomic_add(grad_nears + place, g_here - g_far, mask=inside, sem="relaxed")
        tl.atomic_add(grad_fars + place, g_far, mask=inside, sem="relaxed")


@triton.jit
def add_triple(target, place, inside, x, y, z):
    """Adds three numbers of each ray, which no other program touches: sums that take no registers between steps."""
    tl.atomic_add(target + place * 3, x, mask=inside, sem="relaxed")
    tl.atomic_add(target + place * 3 + 1, y, mask=inside, sem="relaxed")
    tl.atomic_add(target + place * 3 + 2, z, mask=inside, sem="relaxed")


@triton.jit
def store_matrix(target, value):
    """A whole matrix, densely."""
    rows = tl.arange(0, value.shape[0])[:, None] * value.shape[1]
    tl.store(target + rows + tl.arange(0, value.shape[1])[None, :], value)


@triton.jit
def first_column(value):
    """Column 0 of a matrix."""
    return tl.sum(tl.where((tl.arange(0, value.shape[1]) == 0)[None, :], value, 0.0), 1)


@triton.jit(do_not_specialize=RUN_TIME)
def backward_kernel(
    planes, origins, directions, nears, fars, places, bits, seeds, weights, biases,
    grad_color, grad_depth, grad_opacity, products, unscale,
    grad_planes, grad_origins, grad_directions, grad_nears, grad_fars, grad_places, grad_weights, grad_biases,
    tiles, scenes, programs, zero, columns, rows, steps, first_ray, stop, shift, resolution, cells_b, height, width,
    plane_b, plane_p, plane_h, plane_w,
    C: tl.constexpr, CP: tl.constexpr, HIDDEN: tl.constexpr, OUT: tl.constexpr, OUTP: tl.constexpr,
    DEPTH: tl.constexpr, UNIT: tl.constexpr, AXES: tl.constexpr, ALIGN: tl.constexpr, BORDER: tl.constexpr,
    SCALE: tl.constexpr, ACTIVATION: tl.constexpr, DENSITY: tl.constexpr, COLOR: tl.constexpr, CELLS: tl.constexpr,
    JITTER: tl.constexpr, EXPLICIT: tl.constexpr, WORLD: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
    TILE_W: tl.constexpr,
    GRAD_PLANES: tl.constexpr, GRAD_DECODER: tl.constexpr, GRAD_RAYS: tl.constexpr,
    KEEP: tl.constexpr, FRESH: tl.constexpr, WINDOWS: tl.constexpr,
):
    """Gradients of planes (added to [B, 3, H, W, C]), rays, places, and each program's share of the decoder's.

    products [B, R]: the sums along each ray times their cotangents. All cotangents come scaled, so that float16 holds
    what becomes of them; unscale [1] takes it back, except for the decoder's share. The rest as in `forward_kernel`.
    """
    program = tl.program_id(0)
    w_in = matrix(weights, CP, HIDDEN)
    d_in = tl.zeros([HIDDEN, CP], tl.float32)
    db_in = tl.zeros([HIDDEN, 16], tl.float32)
    AT_OUT: tl.constexpr = CP * HIDDEN + (DEPTH - 1) * HIDDEN * HIDDEN
    if GRAD_DECODER and not KEEP:
        grad_weights += program.to(tl.int64) * (AT_OUT + HIDDEN * OUTP)
        grad_biases += program.to(tl.int64) * (DEPTH * HIDDEN + OUTP)
    if DEPTH > 1:
        w_mid = matrix(weights + CP * HIDDEN, HIDDEN, HIDDEN)
        d_mid = tl.zeros([HIDDEN, HIDDEN], tl.float32)
        db_mid = tl.zeros([HIDDEN, 16], tl.float32)
    w_out = matrix(weights + AT_OUT, HIDDEN, OUTP)
    d_out = tl.zeros([HIDDEN, OUTP], tl.float32)
    db_out = tl.zeros([OUTP], tl.float32)
    for tile in tl.range(program, tiles * scenes, programs, disable_licm=True):
        scene = (tile // tiles).to(tl.int64)
        ray, exists = tile_rays(tile % tiles, columns, rows, TILE_W, BLOCK)
        place = scene * (columns * rows) + ray
        first = tl.zeros([], tl.int32)
        last = first + steps
        if not EXPLICIT:
            ox, oy, oz, dx, dy, dz, near, far = load_rays(origins, directions, nears, fars, place, exists)
            first, last = step_range(ox, oy, oz, dx, dy, dz, near, far, steps, exists)
        behind = tl.load(products + place, mask=exists, other=0.0)
        thickness = tl.zeros([BLOCK], tl.float32)
        # 2 where a step has something to decode, 1 where it has not, 0 from where all rays are closed
        state = tl.full([], 1, tl.int32)
        for step in tl.range(first, last, disable_licm=True):
            if state > 0:
                # what a ray is, is read at every step, and zeros that the compiler does not know keep it from computing
                # addresses beforehand: registers are for the decoder's gradients
                now = tl.multiple_of(step * zero, 16)
                late = tl.multiple_of((step + 1) * zero, 16)
                scene = ((tile + now) // tiles).to(tl.int64)
                ray, exists = tile_rays(tile % tiles + now, columns, rows, TILE_W, BLOCK)
                place = scene * (columns * rows) + ray
                sources, shifts = weights + now, biases + now
                ox, oy, oz, dx, dy, dz, near, far = load_rays(origins, directions, nears, fars, place, exists)
                key = ray_key(seeds, scene, ray, first_ray, JITTER)
                here, length, _ = sample_at(step, steps, near, far, places, place, exists, key, EXPLICIT, JITTER)
                x, y, z, boxed = point_at(here, ox, oy, oz, dx, dy, dz)
                light = tl.exp(-thickness)
                open = exists & ~(light < stop)
                inside = boxed & open
                if CELLS:
                    inside = inside & occupied(bits + scene * cells_b, resolution, x, y, z)
                state = tl.max(tl.where(inside, 2, tl.where(open, 1, 0)), 0)
                if state == 2:
                    own = planes + scene * plane_b * UNIT
                    feature = features(own, x, y, z, inside, height, width, plane_p, plane_h, plane_w, C, CP, UNIT,
                                       AXES, ALIGN, BORDER, SCALE).to(w_in.dtype)
                    before = layer(feature, again(w_in, sources, FRESH), shifts, PRECISION)
                    hidden = activate(before, w_in.dtype, ACTIVATION)
                    deep = hidden
                    if DEPTH > 1:
                        before = layer(hidden, again(w_mid, sources + CP * HIDDEN, FRESH), shifts + HIDDEN, PRECISION)
                        deep = activate(before, w_in.dtype, ACTIVATION)
                    raw = layer(deep, again(w_out, sources + AT_OUT, FRESH), shifts + DEPTH * HIDDEN, PRECISION)
                    logit, sigma = density(raw, shift, DENSITY)
                    speed = world_length(dx, dy, dz, WORLD)
                    tau = tl.where(inside, sigma * (length * speed), 0.0)
                    weight = light * absorbed(tau)
                    given = cotangents(grad_color, grad_opacity, place, exists, OUT, OUTP)
                    given_depth = tl.load(grad_depth + place, mask=exists, other=0.0)
                    added = tl.sum(given * colors(raw, COLOR), 1) + given_depth * here
                    behind -= tl.where(inside, weight * added, 0.0)
                    g_tau = tl.where(inside, light * tl.exp(-tau) * added - behind, 0.0)
                    thickness += tau
                    g_raw = raw_gradient(raw, logit, g_tau * (length * speed), weight[:, None] * given, DENSITY, COLOR)
                    g_raw = tl.where(inside[:, None], g_raw, 0.0)
                    g_low = g_raw.to(w_in.dtype)
                    if GRAD_DECODER:
                        db_out += tl.sum(g_raw, 0)
                        d_out = outer(deep, g_low, d_out, grad_weights + AT_OUT, False, KEEP, PRECISION)
                    sources = weights + late
                    turned = tl.trans(again(w_out, sources + AT_OUT, FRESH))
                    g_hidden = tl.dot(g_low, turned, input_precision=PRECISION)
                    if DEPTH > 1:
                        g_hidden = through(g_hidden, before, ACTIVATION)
                        g_low = g_hidden.to(w_in.dtype)
                        if GRAD_DECODER:
                            db_mid = outer_ones(g_low, db_mid, grad_biases + HIDDEN, KEEP, PRECISION)
                            d_mid = outer(g_low, hidden, d_mid, grad_weights + CP * HIDDEN, True, KEEP, PRECISION)
                        turned = tl.trans(again(w_mid, sources + CP * HIDDEN, FRESH))
                        g_hidden = tl.dot(g_low, turned, input_precision=PRECISION)
                    # multiplied once more, which is cheaper than keeping it
                    before = layer(feature, again(w_in, sources, FRESH), biases + late, PRECISION)
                    g_hidden = through(g_hidden, before, ACTIVATION)
                    g_low = g_hidden.to(w_in.dtype)
                    if GRAD_DECODER:
                        db_in = outer_ones(g_low, db_in, grad_biases, KEEP, PRECISION)
                        d_in = outer(g_low, feature, d_in, grad_weights, True, KEEP, PRECISION)
                    if GRAD_PLANES or GRAD_RAYS:
                        # once more from memory, likewise
                        inverse = tl.load(unscale + late)
                        if GRAD_RAYS:
                            scene = ((tile + late) // tiles).to(tl.int64)
                            own = planes + scene * plane_b * UNIT
                        ray, exists = tile_rays(tile % tiles + late, columns, rows, TILE_W, BLOCK)
                        place = scene * (columns * rows) + ray
                        ox, oy, oz, dx, dy, dz, near, far = load_rays(origins, directions, nears, fars, place, exists)
                        key = ray_key(seeds, scene, ray, first_ray, JITTER)
                        here, length, offset = sample_at(step, steps, near, far, places, place, exists, key, EXPLICIT,
                                                         JITTER)
                        x, y, z, boxed = point_at(here, ox, oy, oz, dx, dy, dz)
                        turned = tl.trans(again(w_in, sources, FRESH))
                        g_feature = tl.dot(g_low, turned, input_precision=PRECISION)
                        if GRAD_PLANES:
                            add_to_planes(g_feature, inverse * SCALE, grad_planes, scene, x, y, z, inside,
                                          height + late, width, w_in.dtype, C, CP, AXES, ALIGN, BORDER, PRECISION,
                                          WINDOWS)
                    if GRAD_RAYS:
                        gx, gy, gz = point_gradients(g_feature, inverse * SCALE, own, x, y, z, inside, height, width,
                                                     plane_p, plane_h, plane_w, C, CP, UNIT, AXES, ALIGN, BORDER)
                        speed = world_length(dx, dy, dz, WORLD)
                        given_depth = tl.load(grad_depth + place, mask=exists, other=0.0)
                        g_slope = tl.where(inside, g_tau * sigma * inverse, 0.0)
                        g_speed = g_slope * length / tl.where(speed > 0, speed, 1.0) if WORLD else 0.0
                        g_here = tl.where(inside, gx * dx + gy * dy + gz * dz + weight * given_depth * inverse, 0.0)
                        add_triple(grad_origins, place, inside, gx, gy, gz)
                        add_triple(grad_directions, place, inside, here * gx + g_speed * dx, here * gy + g_speed * dy,
                                   here * gz + g_speed * dz)
                        place_gradients(grad_nears, grad_fars, grad_places, g_here, g_slope * speed, near, far, here,
                                        offset, place, step, steps, inside, EXPLICIT)
    if GRAD_DECODER:
        if KEEP:
            # not before the loop, through which they would be carried
            grad_weights += program.to(tl.int64) * (AT_OUT + HIDDEN * OUTP)
            grad_biases += program.to(tl.int64) * (DEPTH * HIDDEN + OUTP)
        tl.store(grad_biases + DEPTH * HIDDEN + tl.arange(0, OUTP), db_out)
        if KEEP:
            store_matrix(grad_weights, tl.trans(d_in))
            tl.store(grad_biases + tl.arange(0, HIDDEN), first_column(db_in))
            if DEPTH > 1:
                store_matrix(grad_weights + CP * HIDDEN, tl.trans(d_mid))
                tl.store(grad_biases + HIDDEN + tl.arange(0, HIDDEN), first_column(db_mid))
            store_matrix(grad_weights + AT_OUT, d_out)
