"""The weight gradient of the 3D-aware convolution as Triton kernels, without atomics: partial sums, then their sum."""

import triton
import triton.language as tl

from ..kernels import flushed


@triton.jit(do_not_specialize=["images", "planes", "height", "width", "height_in", "width_in", "padding", "splits"])
def weight_gradient(
    grad, x, partial, images, planes, height, width, height_in, width_in, channels, outputs, padding, splits,
    grad_batch, grad_plane, grad_row, grad_column, grad_channel, grad_vector,
    x_batch, x_plane, x_row, x_column, x_channel,
    WEIGHTS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr, LINE: tl.constexpr,
    TILE_O: tl.constexpr, TILE_C: tl.constexpr, TILE_P: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """partial [splits, WEIGHTS, KERNEL^2, O, C]: for each tap the sum over some pixels of grad times what the tap read.

    grad [N, height, width, O], x [N, height_in, width_in, C]. Steps of TILE_P pixels are dealt to the splits. LINE 0 is
    the own plane. LINE 1 (2) has grad [N, KERNEL, 1, width, O], one vector for each kernel row (column) grad_vector
    apart, and x [N, 1, width_in, C], a line along the columns (rows). WEIGHTS: 1, or planes where each has its own.
    """
    tiles_c = tl.cdiv(channels, TILE_C)
    channel = (tl.program_id(0) % tiles_c) * TILE_C + tl.arange(0, TILE_C)
    output = (tl.program_id(0) // tiles_c) * TILE_O + tl.arange(0, TILE_O)
    tap = tl.program_id(1)
    weight = tl.program_id(2) % WEIGHTS
    split = tl.program_id(2) // WEIGHTS
    tap_h = tap // KERNEL
    tap_w = tap % KERNEL
    shift_h = tap_h - padding
    shift_w = tap_w - padding
    vector = 0
    if LINE == 1:
        vector = tap_h
        shift_h = 0
    if LINE == 2:
        vector = tap_w
        shift_w = tap_h - padding
        shift_h = 0
    # the smaller side of a strided convolution is walked pixel by pixel, the other one is read where the tap points
    walked_h = height_in if TRANSPOSED else height
    walked_w = width_in if TRANSPOSED else width
    reached_h = height if TRANSPOSED else height_in
    reached_w = width if TRANSPOSED else width_in
    chunks = tl.cdiv(walked_h * walked_w, TILE_P)
    total = (images // WEIGHTS) * chunks
    each = tl.cdiv(total, splits)
    acc = tl.zeros((TILE_O, TILE_C), tl.float32)
    part = tl.zeros((TILE_O, TILE_C), tl.float32)
    for step in range(split * each, tl.minimum(split * each + each, total)):
        image = (step // chunks).to(tl.int64) * WEIGHTS + weight
        pixel = (step % chunks) * TILE_P + tl.arange(0, TILE_P)
        h = pixel // walked_w
        w = pixel % walked_w
        known = pixel < walked_h * walked_w
        at_h = h * STRIDE + shift_h
        at_w = w * STRIDE + shift_w
        inside = known & (at_h >= 0) & (at_h < reached_h) & (at_w >= 0) & (at_w < reached_w)
        grad_start = grad + (image // planes) * grad_batch + (image % planes) * grad_plane + vector * grad_vector
        x_start = x + (image // planes) * x_batch + (image % planes) * x_plane
        if WIDE:
            h = h.to(tl.int64)
            w = w.to(tl.int64)
            at_h = at_h.to(tl.int64)
            at_w = at_w.to(tl.int64)
        if TRANSPOSED:
            grad_place = at_h * grad_row + at_w * grad_column
            x_place = h * x_row + w * x_column
            grad_known = inside
            x_known = known
        else:
            grad_place = h * grad_row + w * grad_column
            x_place = at_h * x_row + at_w * x_column
            grad_known = known
            x_known = inside
        grads = tl.load(
            grad_start + grad_place[:, None] + output[None, :] * grad_channel,
            mask=grad_known[:, None] & (output < outputs)[None, :], other=0.0)  # fmt: skip
        values = tl.load(
            x_start + x_place[:, None] + channel[None, :] * x_channel,
            mask=x_known[:, None] & (channel < channels)[None, :], other=0.0)  # fmt: skip
        if x.dtype.element_ty == tl.float32:
            acc, part = flushed(acc, tl.dot(tl.trans(grads), values, part, input_precision=PRECISION), step)
        else:
            acc = tl.dot(tl.trans(grads), values, acc, input_precision=PRECISION)
    acc += part
    base = partial + ((split * WEIGHTS + weight).to(tl.int64) * (KERNEL * KERNEL) + tap) * outputs * channels
    inside = (output < outputs)[:, None] & (channel < channels)[None, :]
    tl.store(base + output[:, None] * channels + channel[None, :], acc, mask=inside)


@triton.jit(do_not_specialize=["own_splits", "line_splits"])
def weight_finish(
    partial, out, columns_at, rows_at, own_splits, line_splits, channels, outputs, scale_columns, scale_rows,
    WEIGHTS: tl.constexpr, TAPS: tl.constexpr, TAPS_PADDED: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """out [WEIGHTS, O, 3C, taps] = the sums over the splits of the three slots' partial sums, lines times a scale."""
    output = tl.program_id(1)
    slot = tl.program_id(2) % 3
    weight = tl.program_id(2) // 3
    channel = tl.program_id(0) * TILE_C + tl.arange(0, TILE_C)
    tap = tl.arange(0, TAPS_PADDED)
    start = partial + tl.where(slot == 0, 0, tl.where(slot == 1, columns_at, rows_at))
    splits = tl.where(slot == 0, own_splits, line_splits)
    scale = tl.where(slot == 0, 1.0, tl.where(slot == 1, scale_columns, scale_rows))
    inside = (tap < TAPS)[:, None] & (channel < channels)[None, :]
    acc = tl.zeros((TAPS_PADDED, TILE_C), tl.float32)
    for split in range(splits):
        row = (split * WEIGHTS + weight).to(tl.int64) * TAPS
        place = ((row + tap) * outputs + output)[:, None] * channels + channel[None, :]
        acc += tl.load(start + place, mask=inside, other=0.0)
    base = out + ((weight.to(tl.int64) * outputs + output) * 3 + slot) * channels * TAPS
    place = channel[:, None] * TAPS + tap[None, :]
    tl.store(base + place, tl.trans(acc * scale).to(out.dtype.element_ty), mask=tl.trans(inside))


@triton.jit
def pack(
    weight, out, outputs, channels, w_plane, w_output, w_channel, w_row, w_column,
    KERNEL: tl.constexpr, TAPS_PADDED: tl.constexpr, TILE_O: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """out [weights, KERNEL, KERNEL, outputs, channels] = weight [weights, outputs, channels, KERNEL, KERNEL]."""
    plane = tl.program_id(2).to(tl.int64)
    output = tl.program_id(1) * TILE_O + tl.arange(0, TILE_O)
    channel = tl.program_id(0) * TILE_C + tl.arange(0, TILE_C)
    tap = tl.arange(0, TAPS_PADDED)
    inside = ((output < outputs)[:, None] & (channel < channels)[None, :])[:, :, None]
    inside = inside & (tap < KERNEL * KERNEL)[None, None, :]
    read = (output.to(tl.int64)[:, None] * w_output + channel[None, :] * w_channel)[:, :, None]
    read = read + ((tap // KERNEL) * w_row + tap % KERNEL * w_column)[None, None, :]
    values = tl.load(weight + plane * w_plane + read, mask=inside, other=0.0)
    row = (plane * KERNEL * KERNEL + tap[None, None, :]) * outputs + output[:, None, None]
    tl.store(out + row * channels + channel[None, :, None], values, mask=inside)


@triton.jit(do_not_specialize=["outer", "inner", "spacing", "plane"])
def bias_gradient(
    totals, out, outputs, outer, inner, spacing, plane, TILE_R: tl.constexpr, TILE_O: tl.constexpr
):  # fmt: skip
    """out [weights, outputs] = sums of rows of totals [rows, outputs], in float32.

    Weight p takes `outer` blocks of `inner` rows, `spacing` rows apart, the first of which starts at row p * plane.
    """
    output = tl.program_id(0) * TILE_O + tl.arange(0, TILE_O)
    weight = tl.program_id(1).to(tl.int64)
    start = totals + weight * plane * outputs + output[None, :]
    acc = tl.zeros((TILE_R, TILE_O), tl.float32)
    blocks = tl.cdiv(inner, TILE_R)
    for step in range(outer * blocks):
        row = (step % blocks) * TILE_R + tl.arange(0, TILE_R)
        inside = (row < inner)[:, None] & (output < outputs)[None, :]
        place = ((step // blocks).to(tl.int64) * spacing + row)[:, None] * outputs
        acc += tl.load(start + place, mask=inside, other=0.0)
    tl.store(out + weight * outputs + output, tl.sum(acc, 0).to(out.dtype.element_ty), mask=output < outputs)
