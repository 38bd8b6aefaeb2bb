"""The own-plane part of the 3D-aware convolution as Triton kernels: an implicit matrix product and its weight gradient.

Images lie as [N, H, W, C] with any strides, N = B * planes; results are dense in that order. A convolution gathers each
output pixel's taps; a transposed one does so for one residue class of pixels per program, whose live taps are the same.
"""

import triton
import triton.language as tl


@triton.jit
def axis_source(position, tap, stride, padding, TRANSPOSED: tl.constexpr):
    """Where tap `tap` of an output position reads, and whether it does: transposed, the stride skips some."""
    if TRANSPOSED:
        reach = position + padding - tap
        return reach // stride, reach % stride == 0
    else:
        source = position * stride + tap - padding
        return source, source == source


@triton.jit
def flushed(total, part, step):
    """`total` plus `part` after every fourth step, and what is left of it: float32 sums in short chains err less."""
    done = step % 4 == 3
    return total + tl.where(done, part, 0.0), tl.where(done, 0.0, part)


@triton.jit
def add_vectors(
    acc, lines, first, vectors, spacing, positions, length, channel, channels, size_in, across, stride, padding,
    ROWS: tl.constexpr, ALWAYS: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """acc [TH, TW, TC] plus `vectors` line vectors, each where its tap (`first`, then every `spacing`) is live.

    lines points to [taps, length, channels]; `positions` go along the line, `across` over what it is replicated on.
    """
    inside = (positions < length)[:, None] & (channel < channels)[None, :]
    place = lines + (first * length + positions)[:, None] * channels + channel[None, :]
    if ALWAYS:
        interior = True
    else:
        # taps in order read sources in order, a transposed convolution's downwards: two corners stand for all, if they
        # are of the class that this spacing reaches
        last = first + (vectors - 1) * spacing
        least, _ = axis_source(tl.min(across, 0), last if TRANSPOSED else first, stride, padding, TRANSPOSED)
        most, _ = axis_source(tl.max(across, 0), first if TRANSPOSED else last, stride, padding, TRANSPOSED)
        interior = (least >= 0) & (most < size_in) & (spacing == (stride if TRANSPOSED else 1))
    if interior:
        # away from the borders the vectors are added up before they are replicated
        total = tl.zeros((positions.shape[0], channel.shape[0]), tl.float32)
        for index in range(vectors):
            total += tl.load(place + index * spacing * length * channels, mask=inside, other=0.0)
        acc += total[:, None, :] if ROWS else total[None, :, :]
    else:
        for index in range(vectors):
            values = tl.load(place + index * spacing * length * channels, mask=inside, other=0.0)
            values = values[:, None, :] if ROWS else values[None, :, :]
            source, reached = axis_source(across, first + index * spacing, stride, padding, TRANSPOSED)
            live = reached & (source >= 0) & (source < size_in)
            acc += tl.where(live[None, :, None] if ROWS else live[:, None, None], values, 0.0)
    return acc


@triton.jit
def add_both_lines(
    acc, columns, rows, image, h, w, channel, channels, height_in, width_in, height, width, stride, padding,
    first_h, first_w, vectors_h, vectors_w,
    VECTORS: tl.constexpr, ALWAYS: tl.constexpr, SPACING: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """acc [TH, TW, TC] at rows h and columns w plus both lines of the image, boundary rows and columns included."""
    own_columns = columns + image * (VECTORS * width).to(tl.int64) * channels
    own_rows = rows + image * (VECTORS * height).to(tl.int64) * channels
    acc = add_vectors(
        acc, own_columns, first_h, vectors_h, SPACING, w, width, channel, channels, height_in, h, stride, padding,
        False, ALWAYS, TRANSPOSED)  # fmt: skip
    return add_vectors(
        acc, own_rows, first_w, vectors_w, SPACING, h, height, channel, channels, width_in, w, stride, padding,
        True, ALWAYS, TRANSPOSED)  # fmt: skip


@triton.jit(do_not_specialize=["planes", "height_in", "width_in", "height", "width", "padding"])
def own_plane(
    x, weight, bias, columns, rows, out,
    planes, height_in, width_in, height, width, padding, channels, outputs,
    x_batch, x_plane, x_row, x_column, x_channel, w_plane, w_output, w_channel, w_row, w_column, b_plane,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr, LINES: tl.constexpr, BIAS: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, TILE_O: tl.constexpr, TILE_C: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out [N, height, width, outputs] = convolution of x [N, height_in, width_in, channels] + bias + both lines.

    One program: TILE_H x TILE_W pixels (of one residue class where transposed) and TILE_O outputs; reduction over taps
    and channels. LINES: 0 for none, KERNEL for vectors [N, KERNEL, length, outputs] per tap, live where the tap is, or
    -1 for one vector everywhere. WIDE: offsets within one image in 64 bits.
    """
    CLASSES: tl.constexpr = STRIDE if TRANSPOSED else 1
    pid = tl.program_id(0)
    tiles_o = tl.cdiv(outputs, TILE_O)
    tiles_w = tl.cdiv(tl.cdiv(width, CLASSES), TILE_W)
    tiles_h = tl.cdiv(tl.cdiv(height, CLASSES), TILE_H)
    channel_out = (pid % tiles_o) * TILE_O + tl.arange(0, TILE_O)
    pid = pid // tiles_o
    tile_w = pid % tiles_w
    pid = pid // tiles_w
    tile_h = pid % tiles_h
    pid = pid // tiles_h
    class_w = pid % CLASSES
    pid = pid // CLASSES
    class_h = pid % CLASSES
    image = (pid // CLASSES).to(tl.int64)
    plane = image % planes
    pixel = tl.arange(0, TILE_H * TILE_W)
    h = (tile_h * TILE_H + pixel // TILE_W) * CLASSES + class_h
    w = (tile_w * TILE_W + pixel % TILE_W) * CLASSES + class_w
    if TRANSPOSED:
        first_h = (class_h + padding) % STRIDE
        first_w = (class_w + padding) % STRIDE
        source_h = (h + padding - first_h) // STRIDE
        source_w = (w + padding - first_w) // STRIDE
        taps_h = (KERNEL - first_h + STRIDE - 1) // STRIDE
        taps_w = (KERNEL - first_w + STRIDE - 1) // STRIDE
        direction = -1
    else:
        first_h = 0
        first_w = 0
        source_h = h * STRIDE - padding
        source_w = w * STRIDE - padding
        taps_h = KERNEL
        taps_w = KERNEL
        direction = 1
    if WIDE:
        start = source_h.to(tl.int64) * x_row + source_w.to(tl.int64) * x_column
        w_start = channel_out.to(tl.int64) * w_output
    else:
        start = source_h * x_row + source_w * x_column
        w_start = channel_out * w_output
    x_image = x + (image // planes) * x_batch + plane * x_plane
    w_image = weight + plane * w_plane
    blocks = tl.cdiv(channels, TILE_C)
    acc = tl.zeros((TILE_H * TILE_W, TILE_O), tl.float32)
    part = tl.zeros((TILE_H * TILE_W, TILE_O), tl.float32)
    for step in range(taps_h * taps_w * blocks):
        tap = step // blocks
        tap_h = tap // taps_w
        tap_w = tap % taps_w
        channel = (step % blocks) * TILE_C + tl.arange(0, TILE_C)
        at_h = source_h + direction * tap_h
        at_w = source_w + direction * tap_w
        inside = (at_h >= 0) & (at_h < height_in) & (at_w >= 0) & (at_w < width_in)
        shift = direction * (tap_h.to(tl.int64) * x_row + tap_w.to(tl.int64) * x_column)
        values = tl.load(
            x_image + shift + start[:, None] + channel[None, :] * x_channel,
            mask=inside[:, None] & (channel < channels)[None, :], other=0.0)  # fmt: skip
        w_tap = (first_h + tap_h * CLASSES).to(tl.int64) * w_row + (first_w + tap_w * CLASSES).to(tl.int64) * w_column
        factors = tl.load(
            w_image + w_tap + channel[:, None] * w_channel + w_start[None, :],
            mask=(channel < channels)[:, None] & (channel_out < outputs)[None, :], other=0.0)  # fmt: skip
        if x.dtype.element_ty == tl.float32:
            acc, part = flushed(acc, tl.dot(values, factors, part, input_precision=PRECISION), step)
        else:
            acc = tl.dot(values, factors, acc, input_precision=PRECISION)
    acc += part
    if BIAS:
        acc += tl.load(bias + plane * b_plane + channel_out, mask=channel_out < outputs, other=0.0).to(tl.float32)
    y = tl.reshape(acc, (TILE_H, TILE_W, TILE_O))
    h = (tile_h * TILE_H + tl.arange(0, TILE_H)) * CLASSES + class_h
    w = (tile_w * TILE_W + tl.arange(0, TILE_W)) * CLASSES + class_w
    if LINES == -1:
        y = add_both_lines(
            y, columns, rows, image, h, w, channel_out, outputs, height_in, width_in, height, width, STRIDE, padding,
            0, 0, 1, 1, 1, True, 1, False)  # fmt: skip
    elif LINES > 0:
        y = add_both_lines(
            y, columns, rows, image, h, w, channel_out, outputs, height_in, width_in, height, width, STRIDE, padding,
            first_h, first_w, taps_h, taps_w, LINES, False, CLASSES, TRANSPOSED)  # fmt: skip
    if WIDE:
        h = h.to(tl.int64)
    place = (h[:, None] * width + w[None, :])[:, :, None] * outputs + channel_out[None, None, :]
    inside = ((h < height)[:, None] & (w < width)[None, :])[:, :, None] & (channel_out < outputs)[None, None, :]
    base = out + image * height.to(tl.int64) * width * outputs
    tl.store(base + place, y.to(out.dtype.element_ty), mask=inside)
