"""The lines of the 3D-aware convolution as Triton kernels: sums over both axes in one read, and convolutions on lines.

What runs along the columns (kind 0, width elements) and along the rows (kind 1, height elements) goes through the same
programs. Lines lie as [N, length, C], tap vectors as [N, taps, length, C], the two kinds at offsets of one buffer.
"""

import triton
import triton.language as tl

from ..kernels import add_both_lines, axis_source, flushed


@triton.jit
def routed(route, plane, kind):
    """Plane and kind to which the line of (plane, kind) goes: its three bits of `route`, 0 for one plane by itself."""
    code = (route >> (3 * (2 * plane + kind))) & 7
    return code // 2, code % 2


@triton.jit(do_not_specialize=["planes", "height", "width", "low_h", "high_h", "low_w", "high_w", "tiles_h", "tiles_w"])
def pool(
    x, partial, rows_at, planes, height, width, channels, low_h, high_h, low_w, high_w, tiles_h, tiles_w,
    x_batch, x_plane, x_row, x_column, x_channel,
    CLASSES: tl.constexpr, TILE_H: tl.constexpr, SPAN_W: tl.constexpr, TILE_W: tl.constexpr, TILE_C: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Partial sums in float32 of x [N, height, width, channels] over rows and over columns, reading x once.

    partial: over the rows low_h <= h < high_h of each tile and class [N, tiles_h, CLASSES, width, C]; from rows_at on
    the same over columns [N, tiles_w, CLASSES, height, C]. Classes are residues of the row (column) by a stride.
    """
    pid = tl.program_id(0)
    tiles_c = tl.cdiv(channels, TILE_C)
    channel = (pid % tiles_c) * TILE_C + tl.arange(0, TILE_C)
    pid = pid // tiles_c
    class_w = pid % CLASSES
    pid = pid // CLASSES
    class_h = pid % CLASSES
    pid = pid // CLASSES
    tile_w = pid % tiles_w
    pid = pid // tiles_w
    tile_h = pid % tiles_h
    image = (pid // tiles_h).to(tl.int64)
    start = x + (image // planes) * x_batch + (image % planes) * x_plane
    h = (tile_h * TILE_H + tl.arange(0, TILE_H)) * CLASSES + class_h
    inside_h = (h < height)[:, None, None]
    counted_h = ((h >= low_h) & (h < high_h))[:, None, None]
    inside_c = (channel < channels)[None, None, :]
    along_rows = tl.zeros((TILE_H, TILE_W, TILE_C), tl.float32)
    columns_at = ((image * tiles_h + tile_h) * CLASSES + class_h) * width
    for chunk in range(SPAN_W // TILE_W):
        w = (tile_w * SPAN_W + chunk * TILE_W + tl.arange(0, TILE_W)) * CLASSES + class_w
        counted_w = ((w >= low_w) & (w < high_w))[None, :, None]
        if WIDE:
            place = h.to(tl.int64)[:, None, None] * x_row + w.to(tl.int64)[None, :, None] * x_column
            place = place + channel.to(tl.int64)[None, None, :] * x_channel
        else:
            place = h[:, None, None] * x_row + w[None, :, None] * x_column + channel[None, None, :] * x_channel
        values = tl.load(start + place, mask=inside_h & (w < width)[None, :, None] & inside_c, other=0.0)
        values = values.to(tl.float32)
        along_rows += tl.where(counted_w, values, 0.0)
        sums = tl.sum(tl.where(counted_h, values, 0.0), 0)
        inside = (w < width)[:, None] & (channel < channels)[None, :]
        tl.store(partial + columns_at * channels + w[:, None] * channels + channel[None, :], sums, mask=inside)
    rows_start = ((image * tiles_w + tile_w) * CLASSES + class_w) * height * channels + rows_at
    inside = (h < height)[:, None] & (channel < channels)[None, :]
    tl.store(partial + rows_start + h[:, None] * channels + channel[None, :], tl.sum(along_rows, 1), mask=inside)


@triton.jit(do_not_specialize=[
    "images", "planes", "height", "width", "height_in", "width_in", "low_h", "high_h", "low_w", "high_w", "tiles_h",
    "tiles_w", "padding", "route"])  # fmt: skip
def finish(
    x, partial, out, totals, rows_at, out_columns, out_rows, images, planes, height, width, channels,
    height_in, width_in, low_h, high_h, low_w, high_w, tiles_h, tiles_w, scale_columns, scale_rows, padding, route,
    x_batch, x_plane, x_row, x_column, x_channel,
    TAPS: tl.constexpr, STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr, TOTALS: tl.constexpr,
    TILE_L: tl.constexpr, TILE_C: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The partial sums of `pool` added up, with the border rows (columns) that it left out, times a scale.

    TAPS = 0: one sum of everything, to out [N, length, C], routed to the plane that needs it. Else to out
    [N, TAPS, length, C], for each tap the sum where it is live; TOTALS adds everything along the columns to
    totals [N, width, C] in float32, unscaled.
    """
    CLASSES: tl.constexpr = STRIDE if TRANSPOSED else 1
    tiles_c = tl.cdiv(channels, TILE_C)
    tiles_l = tl.cdiv(tl.maximum(width, height), TILE_L)
    channel = (tl.program_id(0) % tiles_c) * TILE_C + tl.arange(0, TILE_C)
    position = (tl.program_id(0) // tiles_c % tiles_l) * TILE_L + tl.arange(0, TILE_L)
    image = (tl.program_id(0) // tiles_c // tiles_l).to(tl.int64)
    kind = tl.program_id(1)
    plane = image % planes
    length = tl.where(kind == 0, width, height)
    low = tl.where(kind == 0, low_h, low_w)
    high = tl.where(kind == 0, high_h, high_w)
    borders = low + tl.where(kind == 0, height, width) - high
    size_in = tl.where(kind == 0, height_in, width_in)
    tiles = tl.where(kind == 0, tiles_h, tiles_w)
    along = tl.where(kind == 0, x_column, x_row).to(tl.int64)
    across = tl.where(kind == 0, x_row, x_column).to(tl.int64)
    scale = tl.where(kind == 0, scale_columns, scale_rows)
    start = x + (image // planes) * x_batch + plane * x_plane
    sums = partial + tl.where(kind == 0, 0, rows_at) + image * tiles * CLASSES * length * channels
    out_at = tl.where(kind == 0, out_columns, out_rows)
    inside = (position < length)[:, None] & (channel < channels)[None, :]
    place = position[:, None] * channels + channel[None, :]
    spacing = length.to(tl.int64) * channels
    if WIDE:
        pixels = position.to(tl.int64)[:, None] * along + channel.to(tl.int64)[None, :] * x_channel
    else:
        pixels = position[:, None] * along.to(tl.int32) + channel[None, :] * x_channel
    if TAPS == 0:
        acc = tl.zeros((TILE_L, TILE_C), tl.float32)
        for tile in range(tiles):
            acc += tl.load(sums + tile * spacing + place, mask=inside, other=0.0)
        target, target_kind = routed(route, plane, kind)
        line = target_kind * images + (image // planes) * planes + target
        tl.store(out + out_at + line * spacing + place, (acc * scale).to(out.dtype.element_ty), mask=inside)
    else:
        total = tl.zeros((TILE_L, TILE_C), tl.float32)
        for tap in range(TAPS):
            residue = (tap + CLASSES * padding - padding) % CLASSES
            acc = tl.zeros((TILE_L, TILE_C), tl.float32)
            for tile in range(tiles):
                acc += tl.load(sums + (tile * CLASSES + residue) * spacing + place, mask=inside, other=0.0)
            for border in range(borders):
                at = tl.where(border < low, border, high + border - low)
                source, reached = axis_source(at, tap, STRIDE, padding, TRANSPOSED)
                live = reached & (source >= 0) & (source < size_in)
                acc += tl.load(start + at * across + pixels, mask=(inside & live) != 0, other=0.0).to(tl.float32)
            base = out + out_at + (image * TAPS + tap) * spacing
            tl.store(base + place, (acc * scale).to(out.dtype.element_ty), mask=inside)
        if TOTALS:
            for tile in range(tiles * CLASSES):
                total += tl.load(sums + tile * spacing + place, mask=inside, other=0.0)
            for border in range(borders):
                at = tl.where(border < low, border, high + border - low)
                total += tl.load(start + at * across + pixels, mask=inside, other=0.0).to(tl.float32)
            tl.store(totals + image * spacing + place, total, mask=(inside & (kind == 0)) != 0)


@triton.jit(do_not_specialize=["images", "planes", "width_in", "height_in", "width", "height", "padding", "route"])
def line_conv(
    lines, weight, out, in_columns, in_rows, out_columns, out_rows, images, planes,
    width_in, height_in, width, height, channels, outputs, padding, scale_columns, scale_rows, route,
    w_plane, w_output, w_channel, w_row, w_column, w_columns, w_rows,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr, BACKWARD: tl.constexpr,
    TILE_L: tl.constexpr, TILE_O: tl.constexpr, TILE_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Convolutions along both kinds of lines, to float32.

    Forward: lines [N, length_in, C] to the vectors [N, KERNEL, length, O], one for each tap across the line. BACKWARD:
    vectors [N, KERNEL, length_in, C] to lines [N, length, O], summed over the taps and routed to the plane that was
    averaged. w_columns and w_rows are the offsets of the two slots in the weight.
    """
    tiles_o = tl.cdiv(outputs, TILE_O)
    channel_out = (tl.program_id(0) % tiles_o) * TILE_O + tl.arange(0, TILE_O)
    vector = tl.program_id(1)
    kind = tl.program_id(2) % 2
    plane = (tl.program_id(2) // 2).to(tl.int64)
    length_in = tl.where(kind == 0, width_in, height_in)
    length = tl.where(kind == 0, width, height)
    w_tap = tl.where(kind == 0, w_column, w_row).to(tl.int64)
    w_vector = tl.where(kind == 0, w_row, w_column).to(tl.int64)
    scale = tl.where(kind == 0, scale_columns, scale_rows)
    number = (tl.program_id(0) // tiles_o) * TILE_L + tl.arange(0, TILE_L)
    batch = (number // length).to(tl.int64)
    position = number % length
    image = batch * planes + plane
    known = image < images
    VECTORS: tl.constexpr = KERNEL if BACKWARD else 1
    starts = lines + tl.where(kind == 0, in_columns, in_rows) + image * VECTORS * length_in * channels
    factors_at = weight + plane * w_plane + tl.where(kind == 0, w_columns, w_rows) + vector * w_vector
    blocks = tl.cdiv(channels, TILE_C)
    acc = tl.zeros((TILE_L, TILE_O), tl.float32)
    part = tl.zeros((TILE_L, TILE_O), tl.float32)
    for step in range(VECTORS * KERNEL * blocks):
        channel = (step % blocks) * TILE_C + tl.arange(0, TILE_C)
        tap = (step // blocks) % KERNEL
        across = step // blocks // KERNEL
        source, reached = axis_source(position, tap, STRIDE, padding, TRANSPOSED)
        inside = known & reached & (source >= 0) & (source < length_in)
        values = tl.load(
            (starts + (across * length_in + source) * channels)[:, None] + channel[None, :],
            mask=inside[:, None] & (channel < channels)[None, :], other=0.0)  # fmt: skip
        factors = tl.load(
            factors_at + across * w_vector + tap * w_tap
            + channel[:, None] * w_channel + channel_out[None, :] * w_output,
            mask=(channel < channels)[:, None] & (channel_out < outputs)[None, :], other=0.0)  # fmt: skip
        if lines.dtype.element_ty == tl.float32:
            acc, part = flushed(acc, tl.dot(values, factors, part, input_precision=PRECISION), step)
        else:
            acc = tl.dot(values, factors, acc, input_precision=PRECISION)
    acc += part
    if BACKWARD:
        target, target_kind = routed(route, plane, kind)
        line = target_kind * images + batch * planes + target
    else:
        line = image * KERNEL + vector
    starts = out + tl.where(kind == 0, out_columns, out_rows) + (line * length + position) * outputs
    tl.store(
        starts[:, None] + channel_out[None, :], acc * scale,
        mask=known[:, None] & (channel_out < outputs)[None, :])  # fmt: skip


@triton.jit(do_not_specialize=["height_in", "width_in", "height", "width", "padding"])
def add_lines(
    y, columns, rows, height_in, width_in, height, width, channels, padding,
    LINES: tl.constexpr, STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, TILE_C: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y [N, height, width, C] plus both lines, in place, as the epilogue of `own_plane` adds them; LINES as there."""
    pid = tl.program_id(0)
    tiles_c = tl.cdiv(channels, TILE_C)
    channel = (pid % tiles_c) * TILE_C + tl.arange(0, TILE_C)
    pid = pid // tiles_c
    tiles_w = tl.cdiv(width, TILE_W)
    tiles_h = tl.cdiv(height, TILE_H)
    w = (pid % tiles_w) * TILE_W + tl.arange(0, TILE_W)
    h = (pid // tiles_w % tiles_h) * TILE_H + tl.arange(0, TILE_H)
    image = (pid // tiles_w // tiles_h).to(tl.int64)
    inside = ((h < height)[:, None] & (w < width)[None, :])[:, :, None] & (channel < channels)[None, None, :]
    wide_h = h.to(tl.int64) if WIDE else h
    place = (wide_h[:, None] * width + w[None, :])[:, :, None] * channels + channel[None, None, :]
    start = y + image * height.to(tl.int64) * width * channels
    acc = tl.load(start + place, mask=inside, other=0.0).to(tl.float32)
    VECTORS: tl.constexpr = LINES if LINES > 0 else 1
    acc = add_both_lines(
        acc, columns, rows, image, h, w, channel, channels, height_in, width_in, height, width, STRIDE, padding,
        0, 0, VECTORS, VECTORS, VECTORS, LINES < 0, 1, TRANSPOSED)  # fmt: skip
    tl.store(start + place, acc.to(y.dtype.element_ty), mask=inside)
