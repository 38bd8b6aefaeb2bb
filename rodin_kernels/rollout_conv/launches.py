"""One function for each Triton kernel of the 3D-aware convolution: what it allocates and how it is launched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import configs
from ..launch import launch_options, needs_int64
from ..layouts import cross_sources
from .choice import Shape, architecture, rule
from .torch_path import Step

#: Least sizes of tiles: tensor cores take no smaller products.
_LEAST = {"own_plane": (4, 4, 16, 16), "weight_gradient": (16, 16, 16), "line_conv": (16, 16, 16)}


@dataclass(frozen=True)
class Lines:
    """Vectors of both kinds in one buffer, `taps` of them for each image: along the columns, then along the rows."""

    buffer: Tensor
    columns: int
    rows: int
    #: what the values were multiplied by, for each kind
    scales: tuple[float, float] = (1.0, 1.0)


def launch_rule(purpose: str, x: Tensor, outputs: int) -> dict[str, Any]:
    """The launch parameters for images x [B, P, C, H, W]: what was tuned on this device, else shipped ones."""
    shape = Shape(8 * x.element_size(), x.shape[2], outputs, max(x.shape[3:]))
    shipped = rule(architecture(x.device), purpose, shape)
    least = _LEAST.get(purpose, ())
    return configs.tuned_rule("rollout_conv", purpose, shape._asdict(), shipped, x.device, least=least)


def strides(x: Tensor) -> tuple[int, ...]:
    """Strides of [B, P, C, H, W] in the kernels' order: batch, plane, row, column, channel."""
    batch, plane, channel, row, column = x.stride()
    return batch, plane, row, column, channel


def precision(x: Tensor) -> str:
    """float32 products are exact unless the process allows tf32 by `torch.set_float32_matmul_precision`."""
    return "ieee" if x.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest" else "tf32"


def routes(layout: Sequence[str]) -> tuple[dict[tuple[int, int], tuple[int, int]], int, int]:
    """Where the averages go: (source plane, kind) -> (plane, kind), and this and its inverse as the kernels read them.

    Kind 0 runs along the columns of its plane, kind 1 along its rows.
    """
    found = {
        (source, 0 if dim == -2 else 1): (target, kind)
        for target, pair in enumerate(cross_sources(layout))
        for kind, (source, dim) in enumerate(pair)
    }
    there = sum((2 * t + kind) << (3 * (2 * s + k)) for (s, k), (t, kind) in found.items())
    back = sum((2 * s + k) << (3 * (2 * t + kind)) for (s, k), (t, kind) in found.items())
    return found, there, back


def line_places(sets: Sequence[Tensor], channels: int) -> tuple[list[tuple[int, int]], int]:
    """Offsets of the lines along columns and rows of each set [B, P, C, H, W] in one buffer, and its length."""
    places, end = [], 0
    for x in sets:
        images, height, width = x.shape[0] * x.shape[1], x.shape[3], x.shape[4]
        places.append((end, end + images * width * channels))
        end += images * (width + height) * channels
    return places, end


def interior(size_in: int, size: int, kernel: int, step: Step) -> tuple[int, int]:
    """First and one past the last output position of an axis at which every tap (of its class) reads real elements."""
    if step.transposed:
        low, high = kernel - 1 - step.padding, step.stride * (size_in - 1) - step.padding + 1
    else:
        low = -(-step.padding // step.stride)
        high = (size_in - kernel + step.padding) // step.stride + 1
    low, high = max(low, 0), min(high, size)
    return (low, high) if low < high else (size, size)


def average(sets: Sequence[Tensor], layout: Sequence[str]) -> list[Lines]:
    """Both lines of every plane, in the planes' dtype: means of the other two, each plane read once."""
    places, length = line_places(sets, sets[0].shape[2])
    buffer = sets[0].new_empty(length)
    found, there, _ = routes(layout)
    for index, x in enumerate(sets):
        if len(sets) == 1:
            (columns, rows), route = places[0], there
            columns, rows = 0, 0
        else:
            (first, kind), (second, other) = found[index, 0], found[index, 1]
            columns, rows, route = places[first][kind], places[second][other], 0
        partial = _pool(x, 1, (0, x.shape[3], 0, x.shape[4]))
        scales = (1 / x.shape[3], 1 / x.shape[4])
        _finish(x, partial, Lines(buffer, columns, rows, scales), None, (1, 1), 0, Step(1, 0, False), route)
    return [Lines(buffer, *place) for place in places]


def tap_sums(grad: Tensor, size_in: tuple[int, int], kernel: int, step: Step, totals: Tensor | None) -> Lines:
    """Sums of grad [B, P, O, H', W'] over rows and over columns, for each tap where it is live, in grad's dtype.

    totals [N, W', O] takes the sums over all rows in float32. In float16 the vectors hold a power of two less, half-way
    between what keeps small sums exact and what keeps large ones finite; `scales` says how much less.
    """
    height, width = grad.shape[3:]
    bounds = (*interior(size_in[0], height, kernel, step), *interior(size_in[1], width, kernel, step))
    images, outputs = grad.shape[0] * grad.shape[1], grad.shape[2]
    columns = images * kernel * width * outputs
    buffer = grad.new_empty(columns + images * kernel * height * outputs)
    half = grad.dtype == torch.float16
    scales = (2.0 ** -(int(math.log2(height)) // 2), 2.0 ** -(int(math.log2(width)) // 2)) if half else (1.0, 1.0)
    vectors = Lines(buffer, 0, columns, scales)
    partial = _pool(grad, step.stride if step.transposed else 1, bounds)
    _finish(grad, partial, vectors, totals, size_in, kernel, step, 0)
    return vectors


@dataclass(frozen=True)
class _Partial:
    """What `pool` wrote: the buffer, where the row sums start, how many tiles, which rows and columns were counted."""

    buffer: Tensor
    rows_at: int
    tiles: tuple[int, int]
    bounds: tuple[int, int, int, int]


def _pool(x: Tensor, classes: int, bounds: tuple[int, int, int, int]) -> _Partial:
    from .lines.kernels import pool

    batch, planes, channels, height, width = x.shape
    found = launch_rule("pool", x, channels)
    tile_h, span, tile_w, tile_c = found["tile"]
    span = max(span, tile_w)
    tiles = (_tiles(-(-height // classes), tile_h), _tiles(-(-width // classes), span))
    rows_at = batch * planes * tiles[0] * classes * width * channels
    length = rows_at + batch * planes * tiles[1] * classes * height * channels
    partial = _Partial(torch.empty(length, dtype=torch.float32, device=x.device), rows_at, tiles, bounds)
    grid = (batch * planes * tiles[0] * tiles[1] * classes**2 * _tiles(channels, tile_c),)
    pool[grid](
        x, partial.buffer, rows_at, planes, height, width, channels, *bounds, *tiles, *strides(x),
        CLASSES=classes, TILE_H=tile_h, SPAN_W=span, TILE_W=tile_w, TILE_C=tile_c, WIDE=needs_int64(x[0, 0]),
        **launch_options(found["warps"], found["stages"]),
    )  # fmt: skip
    return partial


def _finish(
    x: Tensor, partial: _Partial, out: Lines, totals: Tensor | None, size_in: tuple[int, int], taps: int, step: Step,
    route: int,
) -> None:  # fmt: skip
    from .lines.kernels import finish

    batch, planes, channels, height, width = x.shape
    found = launch_rule("finish", x, channels)
    tile_l, tile_c = found["tile"]
    grid = (batch * planes * _tiles(max(height, width), tile_l) * _tiles(channels, tile_c), 2)
    finish[grid](
        x, partial.buffer, out.buffer, partial.buffer if totals is None else totals, partial.rows_at, out.columns,
        out.rows, batch * planes, planes, height, width, channels, *size_in, *partial.bounds, *partial.tiles,
        *out.scales, step.padding, route, *strides(x),
        TAPS=taps, STRIDE=step.stride, TRANSPOSED=step.transposed, TOTALS=totals is not None,
        TILE_L=tile_l, TILE_C=tile_c, WIDE=needs_int64(x[0, 0]),
        **launch_options(found["warps"], found["stages"]),
    )  # fmt: skip


def line_vectors(x: Tensor, lines: Lines, weight: Tensor, out_size: tuple[int, int], step: Step) -> Lines:
    """The line convolutions of a set x [B, P, C, H, W]: one vector [length, O] for each tap across, in float32."""
    images, kernel, outputs = x.shape[0] * x.shape[1], weight.shape[-1], weight.shape[1]
    columns = images * kernel * out_size[1] * outputs
    length = columns + images * kernel * out_size[0] * outputs
    out = Lines(torch.empty(length, dtype=torch.float32, device=x.device), 0, columns)
    _line_conv(x, lines, weight, out, x.shape[3:], out_size, step, 0, backward=False)
    return out


def line_gradients(
    x: Tensor, vectors: Lines, weight: Tensor, out: Lines, out_size: tuple[int, int], step: Step, route: int
) -> None:
    """The adjoint of `line_vectors`, into `out` in float32, where the averaged planes need it."""
    opposite = Step(step.stride, step.padding, not step.transposed)
    _line_conv(x, vectors, weight, out, out_size, x.shape[3:], opposite, route, backward=True)


def _line_conv(
    x: Tensor, lines: Lines, weight: Tensor, out: Lines, size_in: Sequence[int], size: Sequence[int], step: Step,
    route: int, *, backward: bool,
) -> None:  # fmt: skip
    from .lines.kernels import line_conv

    batch, planes, channels = x.shape[:3]
    outputs, kernel = weight.shape[1], weight.shape[-1]
    w_plane, w_out, w_in, w_row, w_column = _weight_strides(weight, planes)
    slots = (channels * w_in, 2 * channels * w_in)
    if backward:
        channels, outputs, w_out, w_in = outputs, channels, w_in, w_out
    found = launch_rule("line_conv", x, outputs)
    tile_l, tile_o, tile_c = found["tile"]
    tiles = _tiles(batch * max(size), tile_l) * _tiles(outputs, tile_o)
    line_conv[(tiles, 1 if backward else kernel, 2 * planes)](
        lines.buffer, weight, out.buffer, lines.columns, lines.rows, out.columns, out.rows, batch * planes, planes,
        size_in[1], size_in[0], size[1], size[0], channels, outputs, step.padding, *out.scales, route,
        w_plane, w_out, w_in, w_row, w_column, *slots,
        KERNEL=kernel, STRIDE=step.stride, TRANSPOSED=step.transposed, BACKWARD=backward,
        TILE_L=tile_l, TILE_O=tile_o, TILE_C=tile_c, PRECISION=precision(x),
        **launch_options(found["warps"], found["stages"]),
    )  # fmt: skip


def own_plane(
    x: Tensor, weight: Tensor, bias: Tensor | None, lines: Lines, size: tuple[int, int], step: Step, *, backward: bool
) -> Tensor:
    """The implicit matrix product: x [B, P, C, H, W] -> dense [B, P, H', W', O], with bias and lines added.

    Forward the lines are one vector per tap; `backward` takes x as the gradient, convolves the other way and adds one
    line of each kind everywhere.
    """
    from .kernels import own_plane as kernel_function

    batch, planes, channels, height, width = x.shape
    w_plane, w_out, w_in, w_row, w_column = _weight_strides(weight, planes)
    outputs, kernel = weight.shape[1], weight.shape[-1]
    if backward:
        outputs, w_out, w_in = weight.shape[2] // 3, w_in, w_out
    out = x.new_empty(batch, planes, *size, outputs)
    found = launch_rule("own_plane", x, outputs)
    tile_h, tile_w, tile_o, tile_c = found["tile"]
    classes = step.stride if step.transposed else 1
    tiles = _tiles(-(-size[0] // classes), tile_h) * _tiles(-(-size[1] // classes), tile_w) * classes**2
    kernel_function[(batch * planes * tiles * _tiles(outputs, tile_o),)](
        x, weight, x if bias is None else bias, lines.buffer[lines.columns:], lines.buffer[lines.rows:], out,
        planes, height, width, *size, step.padding, channels, outputs, *strides(x), w_plane, w_out, w_in, w_row,
        w_column, outputs if bias is not None and bias.ndim == 2 else 0,
        KERNEL=kernel, STRIDE=step.stride, TRANSPOSED=step.transposed, LINES=-1 if backward else kernel,
        BIAS=bias is not None, TILE_H=tile_h, TILE_W=tile_w, TILE_O=tile_o, TILE_C=tile_c, PRECISION=precision(x),
        WIDE=needs_int64(x[0, 0], out[0, 0], weight[0]), **launch_options(found["warps"], found["stages"]),
    )  # fmt: skip
    return out


def add_lines(y: Tensor, lines: Lines, size_in: tuple[int, int], kernel: int, step: Step, *, backward: bool) -> None:
    """Both lines added in place to what the library's convolution left, dense [B, P, H', W', O]."""
    from .lines.kernels import add_lines as kernel_function

    batch, planes, height, width, channels = y.shape
    found = launch_rule("add_lines", y.permute(0, 1, 4, 2, 3), channels)
    tile_h, tile_w, tile_c = found["tile"]
    tiles = _tiles(height, tile_h) * _tiles(width, tile_w) * _tiles(channels, tile_c)
    kernel_function[(batch * planes * tiles,)](
        y, lines.buffer[lines.columns:], lines.buffer[lines.rows:], *size_in, height, width, channels, step.padding,
        LINES=-1 if backward else kernel, STRIDE=step.stride, TRANSPOSED=step.transposed,
        TILE_H=tile_h, TILE_W=tile_w, TILE_C=tile_c, WIDE=needs_int64(y[0, 0]),
        **launch_options(found["warps"], found["stages"]),
    )  # fmt: skip


def _weight_strides(weight: Tensor, planes: int) -> tuple[int, ...]:
    """Strides of [weights, O, 3C, k, k] by plane (0 where they share one), output, channel, row and column."""
    return (0 if weight.shape[0] < planes else weight.stride(0), *weight.stride()[1:])


def _tiles(size: int, tile: int) -> int:
    return -(-size // tile)
