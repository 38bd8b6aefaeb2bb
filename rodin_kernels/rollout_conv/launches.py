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
from .plan import Plan
from .torch_path import Step

#: Least sizes of tiles: tensor cores take no smaller products.
_LEAST = {"own_plane": (4, 4, 16, 16), "weight_gradient": (16, 16, 16), "line_conv": (16, 16, 16)}


@dataclass(frozen=True)
class Lines:
    """Vectors of both kinds in one buffer of a plan, `taps` of them for each image: along columns, then along rows."""

    buffer: Tensor
    columns: int
    rows: int
    #: what the values were multiplied by, for each kind
    scales: tuple[float, float] = (1.0, 1.0)


def launch_rule(purpose: str, x: Tensor, outputs: int, device: torch.device | None = None) -> dict[str, Any]:
    """The launch parameters for images x [B, P, C, H, W]: what was tuned on the device, else shipped ones."""
    device = device or x.device
    shape = Shape(8 * x.element_size(), x.shape[2], outputs, max(x.shape[3:]))
    shipped = rule(architecture(device), purpose, shape)
    least = _LEAST.get(purpose, ())
    return configs.tuned_rule("rollout_conv", purpose, shape._asdict(), shipped, device, least=least)


def strides(x: Tensor) -> tuple[int, ...]:
    """Strides of [B, P, C, H, W] in the kernels' order: batch, plane, row, column, channel."""
    batch, plane, channel, row, column = x.stride()
    return batch, plane, row, column, channel


def as_planes(dense: Tensor) -> Tensor:
    """Dense [B, P, H, W, C] as the operator returns it: [B, 3, C, H, W] of stacked planes, [B, C, H, W] of one."""
    turned = dense.permute(0, 1, 4, 2, 3)
    return turned.squeeze(1) if dense.shape[1] == 1 else turned


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


def packed_weight(plan: Plan, weight: Tensor) -> Tensor:
    """[weights, O, 3C, k, k] with unit stride along 3C, so that the kernels load whole vectors of channels."""
    whole = weight if weight.ndim == 5 else weight.unsqueeze(0)
    count, outputs, inputs, kernel, _ = whole.shape
    if whole.stride(2) == 1 or inputs == 1:
        return whole
    from .weights.kernels import pack

    packed = plan.buffer(count, kernel, kernel, outputs, inputs, dtype=weight.dtype)
    found = launch_rule("pack", whole, outputs, plan.device)
    tile_o, tile_c = found["tile"]
    plan.add(
        pack, (_tiles(inputs, tile_c), _tiles(outputs, tile_o), count), whole, packed, outputs, inputs,
        *whole.stride(),
        constants={"KERNEL": kernel, "TAPS_PADDED": 1 << (kernel * kernel - 1).bit_length(), "TILE_O": tile_o,
                   "TILE_C": tile_c},
        options=launch_options(found["warps"], found["stages"]),
    )  # fmt: skip
    return packed.permute(0, 3, 4, 1, 2)


def average(plan: Plan, sets: Sequence[Tensor], layout: Sequence[str], *, keep: bool = False) -> list[Lines]:
    """Both lines of every plane, in the planes' dtype: means of the other two, each plane read once.

    With `keep` they are a result of the plan.
    """
    _, length = line_places(sets, sets[0].shape[2])
    buffer = (plan.result if keep else plan.buffer)(length, dtype=sets[0].dtype)
    given = averages(sets, buffer)
    found, there, _ = routes(layout)
    for index, x in enumerate(sets):
        columns = rows = 0
        route = there
        if len(sets) > 1:
            (first, kind), (second, other) = found[index, 0], found[index, 1]
            columns, rows, route = _start(given[first], kind), _start(given[second], other), 0
        partial = _pool(plan, x, 1, (0, x.shape[3], 0, x.shape[4]))
        scales = (1 / x.shape[3], 1 / x.shape[4])
        _finish(plan, x, partial, Lines(buffer, columns, rows, scales), None, (1, 1), 0, Step(1, 0, False), route)
    return given


def averages(sets: Sequence[Tensor], buffer: Tensor) -> list[Lines]:
    """What `average` leaves in its buffer, one for each set."""
    places, _ = line_places(sets, sets[0].shape[2])
    return [Lines(buffer, *place) for place in places]


def _start(lines: Lines, kind: int) -> int:
    return lines.rows if kind else lines.columns


def tap_sums(
    plan: Plan, grad: Tensor, size_in: tuple[int, int], kernel: int, step: Step, totals: Tensor | None
) -> Lines:
    """Sums of grad [B, P, O, H', W'] over rows and over columns, for each tap where it is live, in grad's dtype.

    totals [N, W', O] takes the sums over all rows in float32. In float16 the vectors hold a power of two less, half-way
    between what keeps small sums exact and what keeps large ones finite; `scales` says how much less.
    """
    height, width = grad.shape[3:]
    bounds = (*interior(size_in[0], height, kernel, step), *interior(size_in[1], width, kernel, step))
    images, outputs = grad.shape[0] * grad.shape[1], grad.shape[2]
    columns = images * kernel * width * outputs
    buffer = plan.buffer(columns + images * kernel * height * outputs, dtype=grad.dtype)
    half = grad.dtype == torch.float16
    scales = (2.0 ** -(int(math.log2(height)) // 2), 2.0 ** -(int(math.log2(width)) // 2)) if half else (1.0, 1.0)
    vectors = Lines(buffer, 0, columns, scales)
    partial = _pool(plan, grad, step.stride if step.transposed else 1, bounds)
    _finish(plan, grad, partial, vectors, totals, size_in, kernel, step, 0)
    return vectors


@dataclass(frozen=True)
class _Partial:
    """What `pool` wrote: the buffer, where the row sums start, how many tiles, which rows and columns were counted."""

    buffer: Tensor
    rows_at: int
    tiles: tuple[int, int]
    bounds: tuple[int, int, int, int]


def _pool(plan: Plan, x: Tensor, classes: int, bounds: tuple[int, int, int, int]) -> _Partial:
    from .lines.kernels import pool

    batch, planes, channels, height, width = x.shape
    found = launch_rule("pool", x, channels, plan.device)
    tile_h, span, tile_w, tile_c = found["tile"]
    span = max(span, tile_w)
    tiles = (_tiles(-(-height // classes), tile_h), _tiles(-(-width // classes), span))
    rows_at = batch * planes * tiles[0] * classes * width * channels
    length = rows_at + batch * planes * tiles[1] * classes * height * channels
    partial = _Partial(plan.buffer(length, dtype=torch.float32), rows_at, tiles, bounds)
    grid = (batch * planes * tiles[0] * tiles[1] * classes**2 * _tiles(channels, tile_c),)
    plan.add(
        pool, grid, x, partial.buffer, rows_at, planes, height, width, channels, *bounds, *tiles, *strides(x),
        constants={"CLASSES": classes, "TILE_H": tile_h, "SPAN_W": span, "TILE_W": tile_w, "TILE_C": tile_c,
                   "WIDE": needs_int64(x[0, 0])},
        options=launch_options(found["warps"], found["stages"]),
    )  # fmt: skip
    return partial


def _finish(
    plan: Plan, x: Tensor, partial: _Partial, out: Lines, totals: Tensor | None, size_in: tuple[int, int], taps: int,
    step: Step, route: int,
) -> None:  # fmt: skip
    from .lines.kernels import finish

    batch, planes, channels, height, width = x.shape
    found = launch_rule("finish", x, channels, plan.device)
    tile_l, tile_c = found["tile"]
    grid = (batch * planes * _tiles(max(height, width), tile_l) * _tiles(channels, tile_c), 2)
    plan.add(
        finish, grid, x, partial.buffer, out.buffer, partial.buffer if totals is None else totals,
        partial.rows_at, out.columns, out.rows,
        batch * planes, planes, height, width, channels, *size_in, *partial.bounds, *partial.tiles,
        *out.scales, step.padding, route, *strides(x),
        constants={"TAPS": taps, "STRIDE": step.stride, "TRANSPOSED": step.transposed, "TOTALS": totals is not None,
                   "TILE_L": tile_l, "TILE_C": tile_c, "WIDE": needs_int64(x[0, 0])},
        options=launch_options(found["warps"], found["stages"]),
    )  # fmt: skip


def line_vectors(
    plan: Plan, x: Tensor, lines: Lines, weight: Tensor, out_size: tuple[int, int], step: Step
) -> Lines:
    """The line convolutions of a set x [B, P, C, H, W]: one vector [length, O] for each tap across, in float32."""
    images, kernel, outputs = x.shape[0] * x.shape[1], weight.shape[-1], weight.shape[1]
    columns = images * kernel * out_size[1] * outputs
    length = columns + images * kernel * out_size[0] * outputs
    out = Lines(plan.buffer(length, dtype=torch.float32), 0, columns)
    _line_conv(plan, x, lines, weight, out, x.shape[3:], out_size, step, 0, backward=False)
    return out


def line_gradients(
    plan: Plan, x: Tensor, vectors: Lines, weight: Tensor, out: Lines, out_size: tuple[int, int], step: Step, route: int
) -> None:
    """The adjoint of `line_vectors`, into `out` in float32, where the averaged planes need it."""
    opposite = Step(step.stride, step.padding, not step.transposed)
    _line_conv(plan, x, vectors, weight, out, out_size, x.shape[3:], opposite, route, backward=True)


def _line_conv(
    plan: Plan, x: Tensor, lines: Lines, weight: Tensor, out: Lines, size_in: Sequence[int], size: Sequence[int],
    step: Step, route: int, *, backward: bool,
) -> None:  # fmt: skip
    from .lines.kernels import line_conv

    batch, planes, channels = x.shape[:3]
    outputs, kernel = weight.shape[1], weight.shape[-1]
    w_plane, w_out, w_in, w_row, w_column = _weight_strides(weight, planes)
    slots = (channels * w_in, 2 * channels * w_in)
    if backward:
        channels, outputs, w_out, w_in = outputs, channels, w_in, w_out
    found = launch_rule("line_conv", x, outputs, plan.device)
    tile_l, tile_o, tile_c = found["tile"]
    tiles = _tiles(batch * max(size), tile_l) * _tiles(outputs, tile_o)
    plan.add(
        line_conv, (tiles, 1 if backward else kernel, 2 * planes),
        lines.buffer, weight, out.buffer, lines.columns, lines.rows, out.columns, out.rows, batch * planes, planes,
        size_in[1], size_in[0], size[1], size[0], channels, outputs, step.padding, *out.scales, route,
        w_plane, w_out, w_in, w_row, w_column, *slots,
        constants={"KERNEL": kernel, "STRIDE": step.stride, "TRANSPOSED": step.transposed, "BACKWARD": backward,
                   "TILE_L": tile_l, "TILE_O": tile_o, "TILE_C": tile_c, "PRECISION": precision(x)},
        options=launch_options(found["warps"], found["stages"]),
    )  # fmt: skip


def own_plane(
    plan: Plan, x: Tensor, weight: Tensor, bias: Tensor | None, lines: Lines, size: tuple[int, int], step: Step, *,
    backward: bool,
) -> Tensor:  # fmt: skip
    """The implicit matrix product: x [B, P, C, H, W] -> [B, P, H', W', O], a result of the plan, bias and lines added.

    Forward the lines are one vector per tap; `backward` takes x as the gradient, convolves the other way and adds one
    line of each kind everywhere.
    """
    from .kernels import own_plane as kernel_function

    batch, planes, channels, height, width = x.shape
    w_plane, w_out, w_in, w_row, w_column = _weight_strides(weight, planes)
    outputs, kernel = weight.shape[1], weight.shape[-1]
    if backward:
        outputs, w_out, w_in = weight.shape[2] // 3, w_in, w_out
    out = plan.result(batch, planes, *size, outputs, dtype=x.dtype, show=as_planes)
    found = launch_rule("own_plane", x, outputs, plan.device)
    tile_h, tile_w, tile_o, tile_c = found["tile"]
    classes = step.stride if step.transposed else 1
    tiles = _tiles(-(-size[0] // classes), tile_h) * _tiles(-(-size[1] // classes), tile_w) * classes**2
    plan.add(
        kernel_function, (batch * planes * tiles * _tiles(outputs, tile_o),),
        x, weight, x if bias is None else bias, lines.buffer[lines.columns:], lines.buffer[lines.rows:], out,
        planes, height, width, *size, step.padding, channels, outputs, *strides(x), w_plane, w_out, w_in, w_row,
        w_column, outputs if bias is not None and bias.ndim == 2 else 0,
        constants={"KERNEL": kernel, "STRIDE": step.stride, "TRANSPOSED": step.transposed,
                   "LINES": -1 if backward else kernel, "BIAS": bias is not None, "TILE_H": tile_h, "TILE_W": tile_w,
                   "TILE_O": tile_o, "TILE_C": tile_c, "PRECISION": precision(x),
                   "WIDE": needs_int64(x[0, 0], out[0, 0], weight[0])},
        options=launch_options(found["warps"], found["stages"]),
    )  # fmt: skip
    return out


def add_lines(
    plan: Plan, y: Tensor, lines: Lines, size_in: tuple[int, int], kernel: int, step: Step, *, backward: bool
) -> None:
    """Both lines added in place to what the library's convolution left, dense [B, P, H', W', O]."""
    from .lines.kernels import add_lines as kernel_function

    batch, planes, height, width, channels = y.shape
    found = launch_rule("add_lines", y.permute(0, 1, 4, 2, 3), channels, plan.device)
    tile_h, tile_w, tile_c = found["tile"]
    tiles = _tiles(height, tile_h) * _tiles(width, tile_w) * _tiles(channels, tile_c)
    plan.add(
        kernel_function, (batch * planes * tiles,),
        y, lines.buffer[lines.columns:], lines.buffer[lines.rows:], *size_in, height, width, channels, step.padding,
        constants={"LINES": -1 if backward else kernel, "STRIDE": step.stride, "TRANSPOSED": step.transposed,
                   "TILE_H": tile_h, "TILE_W": tile_w, "TILE_C": tile_c, "WIDE": needs_int64(y[0, 0])},
        options=launch_options(found["warps"], found["stages"]),
    )  # fmt: skip


def _weight_strides(weight: Tensor, planes: int) -> tuple[int, ...]:
    """Strides of [weights, O, 3C, k, k] by plane (0 where they share one), output, channel, row and column."""
    return (0 if weight.shape[0] < planes else weight.stride(0), *weight.stride()[1:])


def _tiles(size: int, tile: int) -> int:
    return -(-size // tile)
