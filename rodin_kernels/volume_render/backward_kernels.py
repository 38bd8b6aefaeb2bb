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

from .kernels import (
    RUN_TIME,
    absorbed,
    activate,
    colors,
    density,
    features,
    in_bin,
    layer,
    line,
    matrix,
    mix,
    occupied,
    pick,
    sigmoid,
    step_range,
    tile_rays,
    triple,
)


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
def outer(grad, x, total, PRECISION: tl.constexpr):
    """`total` and the gradient [out, in] of a layer's weight, from its output's gradient and its input."""
    return tl.dot(tl.trans(grad), x, total, input_precision=PRECISION)


@triton.jit
def raw_gradient(raw, x, sigma_grad, color_grad, DENSITY: tl.constexpr, COLOR: tl.constexpr):
    """Gradient of the last layer [BLOCK, OUTP] from that of the density [BLOCK] and of its columns after activation."""
    if DENSITY == 0:
        slope = sigmoid(x)
    elif DENSITY == 1:
        slope = tl.exp(x)
    else:
        slope = tl.exp(tl.where(x > 15, 15.0, x))
    first = (tl.arange(0, raw.shape[1]) == 0)[None, :]
    if COLOR != 2:
        part = sigmoid(raw)
        part = part * (1 - part)
        color_grad = color_grad * part * 1.002 if COLOR == 1 else color_grad * part
    return tl.where(first, (sigma_grad * slope)[:, None], color_grad)


@triton.jit
def plane_gradients(
    grad, planes, grad_planes, x, y, z, active, height, width, plane_p, plane_h, plane_w,
    C: tl.constexpr, CP: tl.constexpr, UNIT: tl.constexpr, AXES: tl.constexpr, ALIGN: tl.constexpr,
    BORDER: tl.constexpr, GRAD_PLANES: tl.constexpr, GRAD_RAYS: tl.constexpr,
):
    """Adds the features' gradient [BLOCK, CP] to the planes' gradient [3, H, W, C]; the points' gradient comes back."""
    channels = tl.arange(0, CP)
    gx = tl.zeros([x.shape[0]], tl.float32)
    gy = tl.zeros([x.shape[0]], tl.float32)
    gz = tl.zeros([x.shape[0]], tl.float32)
    for p in range(3):
        axes = AXES >> (4 * p)
        column, fx, slope_x = line(pick(x, y, z, axes & 3), width, ALIGN, BORDER)
        row, fy, slope_y = line(pick(x, y, z, (axes >> 2) & 3), height, ALIGN, BORDER)
        base = planes + plane_p.to(tl.int64) * p * UNIT
        target = grad_planes + (p * height).to(tl.int64) * width * C
        cell = row * plane_h + column * plane_w
        texel = row * width + column
        along_x = tl.zeros_like(x)
        along_y = tl.zeros_like(x)
        # one corner at a time as well
        for k in range(4):
            across, down = k & 1, k >> 1
            on = active & (column + across >= 0) & (column + across < width)
            on = on & (row + down >= 0) & (row + down < height)
            wx = tl.where(across == 1, fx, 1 - fx)
            wy = tl.where(down == 1, fy, 1 - fy)
            touched = on[:, None]
            if C != CP:
                touched = touched & (channels < C)[None, :]
            if GRAD_RAYS:
                place = (cell + down * plane_h + across * plane_w)[:, None] * UNIT + channels[None, :]
                value = tl.load(base + place, mask=touched, other=0.0).to(tl.float32)
                product = tl.sum(tl.where(touched, grad * value, 0.0), 1)
                along_x += product * wy * (2 * across - 1)
                along_y += product * wx * (2 * down - 1)
            if GRAD_PLANES:
                place = (texel + down * width + across)[:, None] * C + channels[None, :]
                tl.atomic_add(target + place, (wx * wy)[:, None] * grad, mask=touched, sem="relaxed")
        if GRAD_RAYS:
            along_x *= slope_x
            along_y *= slope_y
            gx += tl.where(axes & 3 == 0, along_x, 0.0) + tl.where((axes >> 2) & 3 == 0, along_y, 0.0)
            gy += tl.where(axes & 3 == 1, along_x, 0.0) + tl.where((axes >> 2) & 3 == 1, along_y, 0.0)
            gz += tl.where(axes & 3 == 2, along_x, 0.0) + tl.where((axes >> 2) & 3 == 2, along_y, 0.0)
    return gx, gy, gz


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
    JITTER: tl.constexpr, EXPLICIT: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, TILE_W: tl.constexpr,
    GRAD_PLANES: tl.constexpr, GRAD_DECODER: tl.constexpr, GRAD_RAYS: tl.constexpr,
):
    """Gradients of planes (added to [B, 3, H, W, C]), rays, places, and each program's share of the decoder's.

    products [B, R]: the sums along each ray times their cotangents. All cotangents come scaled, so that float16 holds
    what becomes of them; unscale [1] takes it back, except for the decoder's share. The rest as in `forward_kernel`.
    """
    program = tl.program_id(0)
    inverse = tl.load(unscale)
    output = tl.arange(0, OUTP)[None, :]
    w_in = matrix(weights, CP, HIDDEN)
    d_in = tl.zeros([HIDDEN, CP], tl.float32)
    # multiplied by ones the biases' gradient comes out of the tensor cores, sixteen times the same
    ones = tl.full([BLOCK, 16], 1.0, weights.dtype.element_ty)
    db_in = tl.zeros([HIDDEN, 16], tl.float32)
    to_mid = weights + CP * HIDDEN
    to_out = to_mid + (DEPTH - 1) * HIDDEN * HIDDEN
    if DEPTH > 1:
        w_mid = matrix(to_mid, HIDDEN, HIDDEN)
        d_mid = tl.zeros([HIDDEN, HIDDEN], tl.float32)
        db_mid = tl.zeros([HIDDEN, 16], tl.float32)
    w_out = matrix(to_out, HIDDEN, OUTP)
    d_out = tl.zeros([HIDDEN, OUTP], tl.float32)
    db_out = tl.zeros([OUTP], tl.float32)
    for tile in range(program, tiles * scenes, programs):
        scene = (tile // tiles).to(tl.int64)
        ray, exists = tile_rays(tile % tiles, columns, rows, TILE_W, BLOCK)
        place = scene * (columns * rows) + ray
        step = tl.zeros([], tl.int32)
        last = step + steps
        if not EXPLICIT:
            ox, oy, oz = triple(origins, place, exists, 2.0)
            dx, dy, dz = triple(directions, place, exists, 0.0)
            near = tl.load(nears + place, mask=exists, other=0.0)
            reach = tl.load(fars + place, mask=exists, other=0.0) - near
            bin_width = tl.where(reach > 0, reach, 0.0) / tl.maximum(steps, 1)
            step, last = step_range(ox, oy, oz, dx, dy, dz, near, bin_width, steps, exists)
        behind = tl.load(products + place, mask=exists, other=0.0)
        thickness = tl.zeros([BLOCK], tl.float32)
        while step < last:
            # what a ray is, is read at every step, and a zero that the compiler does not know keeps it from computing
            # all addresses beforehand: registers are for the decoder's gradients
            now = step * zero
            ray, exists = tile_rays(tile % tiles + now, columns, rows, TILE_W, BLOCK)
            place = scene * (columns * rows) + ray
            shifts = biases + now
            ox, oy, oz = triple(origins, place, exists, 2.0)
            dx, dy, dz = triple(directions, place, exists, 0.0)
            near = tl.load(nears + place, mask=exists, other=0.0)
            far = tl.load(fars + place, mask=exists, other=0.0)
            if EXPLICIT:
                here = tl.load(places + place * steps + step, mask=exists, other=0.0)
                more = (exists & (step + 1 < steps)) != 0
                following = tl.load(places + place * steps + step + 1, mask=more, other=0.0)
                following = tl.where(step + 1 < steps, following, far)
                length = tl.where(following > here, following - here, 0.0)
            else:
                key = ray.to(tl.uint32)
                if JITTER:
                    seed = tl.load(seeds + scene)
                    key = mix(mix(seed.to(tl.uint32)) ^ (seed >> 32).to(tl.uint32))
                    key = mix(key ^ (ray + first_ray).to(tl.uint32))
                offset = step + in_bin(key, step, JITTER)
                length = tl.where(far > near, far - near, 0.0) / tl.maximum(steps, 1)
                here = near + offset * length
            x, y, z = ox + here * dx, oy + here * dy, oz + here * dz
            boxed = (tl.abs(x) <= 1) & (tl.abs(y) <= 1) & (tl.abs(z) <= 1)
            # by the box alone: what the decoder said would bring its products' layout to every address
            x, y, z = tl.where(boxed, x, 0.0), tl.where(boxed, y, 0.0), tl.where(boxed, z, 0.0)
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
                hidden = activate(layer(feature, w_in, shifts, PRECISION), ACTIVATION).to(w_in.dtype)
                deep = hidden
                if DEPTH > 1:
                    before = layer(hidden, w_mid, shifts + HIDDEN, PRECISION)
                    deep = activate(before, ACTIVATION).to(w_in.dtype)
                raw = layer(deep, w_out, shifts + DEPTH * HIDDEN, PRECISION)
                logit, sigma = density(raw, shift, DENSITY)
                speed = tl.sqrt(dx * dx + dy * dy + dz * dz)
                tau = tl.where(inside, sigma * (length * speed), 0.0)
                weight = light * absorbed(tau)
                given = tl.load(grad_color + place[:, None] * OUT + output - 1,
                                mask=exists[:, None] & (output >= 1) & (output <= OUT), other=0.0)
                given_opacity = tl.load(grad_opacity + place, mask=exists, other=0.0)
                given = tl.where(output == 0, given_opacity[:, None], given)
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
                    d_out = outer(deep, g_low, d_out, PRECISION)
                g_hidden = tl.dot(g_low, tl.trans(w_out), input_precision=PRECISION)
                if DEPTH > 1:
                    g_hidden = through(g_hidden, before, ACTIVATION)
                    g_low = g_hidden.to(w_in.dtype)
                    if GRAD_DECODER:
                        db_mid = outer(g_low, ones, db_mid, PRECISION)
                        d_mid = outer(g_low, hidden, d_mid, PRECISION)
                    g_hidden = tl.dot(g_low, tl.trans(w_mid), input_precision=PRECISION)
                # multiplied once more, which is cheaper than keeping it
                before = layer(feature, w_in, shifts + zero, PRECISION)
                g_hidden = through(g_hidden, before, ACTIVATION)
                g_low = g_hidden.to(w_in.dtype)
                if GRAD_DECODER:
                    db_in = outer(g_low, ones, db_in, PRECISION)
                    d_in = outer(g_low, feature, d_in, PRECISION)
                if GRAD_PLANES or GRAD_RAYS:
                    g_feature = tl.dot(g_low, tl.trans(w_in), input_precision=PRECISION)
                    g_feature *= inverse * SCALE
                    gx, gy, gz = plane_gradients(
                        g_feature, own, grad_planes + scene * 3 * height * width * C, x, y, z, inside, height, width,
                        plane_p, plane_h, plane_w, C, CP, UNIT, AXES, ALIGN, BORDER, GRAD_PLANES, GRAD_RAYS,
                    )
                if GRAD_RAYS:
                    g_slope = tl.where(inside, g_tau * sigma * inverse, 0.0)
                    g_speed = g_slope * length / tl.where(speed > 0, speed, 1.0)
                    g_here = tl.where(inside, gx * dx + gy * dy + gz * dz + weight * given_depth * inverse, 0.0)
                    add_triple(grad_origins, place, inside, gx, gy, gz)
                    add_triple(grad_directions, place, inside, here * gx + g_speed * dx, here * gy + g_speed * dy,
                               here * gz + g_speed * dz)
                    if EXPLICIT:
                        g_slope = tl.where(following >= here, g_slope * speed, 0.0)
                        own = place * steps + step
                        tl.atomic_add(grad_places + own, g_here - g_slope, mask=inside, sem="relaxed")
                        inner = (inside & (step + 1 < steps)) != 0
                        final = (inside & (step + 1 == steps)) != 0
                        tl.atomic_add(grad_places + own + 1, g_slope, mask=inner, sem="relaxed")
                        tl.atomic_add(grad_fars + place, g_slope, mask=final, sem="relaxed")
                    else:
                        g_far = tl.where(far >= near, (g_here * offset + g_slope * speed) / steps, 0.0)
                        tl.atomic_add(grad_nears + place, g_here - g_far, mask=inside, sem="relaxed")
                        tl.atomic_add(grad_fars + place, g_far, mask=inside, sem="relaxed")
            step = tl.where(state == 0, last, step + 1)
    if GRAD_DECODER:
        grad_weights += program.to(tl.int64) * (CP * HIDDEN + (DEPTH - 1) * HIDDEN * HIDDEN + HIDDEN * OUTP)
        grad_biases += program.to(tl.int64) * (DEPTH * HIDDEN + OUTP)
        store_matrix(grad_weights, tl.trans(d_in))
        tl.store(grad_biases + tl.arange(0, HIDDEN), first_column(db_in))
        if DEPTH > 1:
            store_matrix(grad_weights + CP * HIDDEN, tl.trans(d_mid))
            tl.store(grad_biases + HIDDEN + tl.arange(0, HIDDEN), first_column(db_mid))
        store_matrix(grad_weights + CP * HIDDEN + (DEPTH - 1) * HIDDEN * HIDDEN, d_out)
        tl.store(grad_biases + DEPTH * HIDDEN + tl.arange(0, OUTP), db_out)
