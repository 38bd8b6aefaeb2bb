"""Tri-plane sampling by Triton kernels: what torch_path.py computes, with the same three functions.

Planes stored channels-last are read in place, by 128 bits at a time; others are copied once (`channels_last`). The
planes' gradient is added up by vector reductions in memory, or, under `torch.use_deterministic_algorithms(True)`,
after a sort, which always adds in the same order.
"""

from __future__ import annotations

from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import configs
from ..launch import device_guard, launch_options, needs_int64
from .torch_path import Scheme, channels_last, compute_dtype

#: Points whose corners are sorted at once where results must repeat; bounds that memory to about 300 MB.
SORTED_CHUNK = 1 << 20
#: Threads that run in step.
WAVE = 64 if torch.version.hip else 32
_PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}
_LARGEST_INT32 = 2**31 - 1


class Tile(NamedTuple):
    """How much one program computes: points (rows of the tile), channels, points that a row walks along, warps."""

    points: int
    channels: int
    steps: int = 1
    warps: int = 4


def channel_block(channels: int) -> int:
    """Channels of a tile: the power of two up to 64 that wastes fewest lanes, and the largest of those."""
    if channels <= 16:
        return 1 << (channels - 1).bit_length()
    return min((64, 32, 16), key=lambda block: (_ceil(channels, block) * block, -block))


def sample_tile(channels: int, itemsize: int, wave: int = WAVE) -> Tile:
    """The tile of the forward pass and the points' gradient: every thread reads 128 bits of a texel for one point."""
    block = channel_block(channels)
    lanes = max(min(16 // itemsize, block), 1)
    return Tile(min(max(4 * wave * lanes // block, 8), 128), block)


def plane_gradient_tile(channels: int, wave: int = WAVE) -> Tile:
    """The tile of the planes' gradient: every thread adds 128 bits, and walks along 8 points."""
    block = channel_block(channels)
    return Tile(min(max(4 * wave * 4 // block, 8), 128), block, steps=8)


def tuned(kernel: str, shipped: Tile, channels: int, source: Tensor, points: Tensor) -> Tile:
    """What was tuned for a kernel on this device, else the shipped tile.

    Args:
        kernel: "sample", "point_gradient", "plane_gradient" or "segments".
        shipped: the tile that this page computes.
        channels: of the planes.
        source: what the kernel reads most, for its dtype and device.
        points: [B, N, 3]; only the magnitude of B N counts.
    """
    shape = {"channels": channels, "bits": 8 * source.element_size(), "magnitude": (points.numel() // 3).bit_length()}
    found = configs.choose("sample_triplane", kernel, shape, shipped._asdict(), source.device)
    return Tile(*(int(found[name]) for name in Tile._fields))


def sample(planes: Tensor, points: Tensor, tangent: Tensor | None, scheme: Scheme, how: str, dtype: torch.dtype,
           divisor: int = 1) -> Tensor:
    """Features at points [B, N, 3] of planes [B or 1, P, C, H, W], divided by `divisor`, in `dtype`.

    `how` is "sum" or "product" over the planes: [B, N, C], or "separate": [B, N, P, C]. With a tangent [B, N, 3]
    (not for the product): the features' derivative along it.
    """
    from .kernels import sample_kernel

    (batch, count, _), channels = points.shape, planes.shape[2]
    per_point = (scheme.planes, channels) if how == "separate" else (channels,)
    out = torch.empty(batch, count, *per_point, dtype=dtype, device=planes.device)
    if out.numel() == 0:
        return out
    planes = channels_last(planes)
    tile = tuned("sample", sample_tile(channels, planes.element_size()), channels, planes, points)
    blocks = _ceil(count, tile.points)
    _launch(
        sample_kernel, (batch * blocks, _ceil(channels, tile.channels)), tile,
        planes, points, points if tangent is None else tangent, out, count, blocks, scheme.height, scheme.width,
        *_plane_strides(planes), *points.stride(), *(points if tangent is None else tangent).stride(),
        **_constants(scheme, channels, tangent, planes.dtype, points.dtype), NEAREST=scheme.mode == "nearest",
        SQUARE=scheme.height == scheme.width, UNIT=_unit(planes), WIDE=_is_wide(planes),
        HOW=("sum", "separate", "product").index(how), SCALE=1 / divisor, BLOCK_N=tile.points, BLOCK_C=tile.channels,
    )
    return out


def point_gradient(grad: Tensor, planes: Tensor, points: Tensor, tangent: Tensor | None, scheme: Scheme,
                   separate: bool, divisor: int = 1) -> Tensor:
    """Gradient [B, N, 3] of the points from that of the features, in the points' dtype; as in torch_path.py."""
    from .kernels import point_gradient_kernel

    (batch, count, _), channels = points.shape, planes.shape[2]
    if scheme.mode == "nearest" or points.numel() == 0:
        return torch.zeros(points.shape, dtype=points.dtype, device=points.device)
    out = torch.empty(points.shape, dtype=points.dtype, device=points.device)
    planes, grad = channels_last(planes), grad.contiguous()
    tile = tuned("point_gradient", sample_tile(channels, planes.element_size()), channels, planes, points)
    blocks = _ceil(count, tile.points)
    _launch(
        point_gradient_kernel, (batch * blocks,), tile,
        grad, planes, points, points if tangent is None else tangent, out, count, blocks, scheme.height, scheme.width,
        *_plane_strides(planes), *points.stride(), *(points if tangent is None else tangent).stride(),
        **_constants(scheme, channels, tangent, planes.dtype, points.dtype), SQUARE=scheme.height == scheme.width,
        UNIT=_unit(planes), WIDE=_is_wide(planes), SEPARATE=separate, SCALE=1 / divisor, BLOCK_N=tile.points,
        BLOCK_C=tile.channels,
    )
    return out


def plane_gradient(grad: Tensor, points: Tensor, tangent: Tensor | None, scheme: Scheme, separate: bool, batch: int,
                   divisor: int = 1) -> Tensor:
    """Gradient [batch, P, C, H, W] of the planes, channels-last, in `compute_dtype`; batch is 1 or that of points."""
    channels, dtype = grad.shape[-1], compute_dtype(grad.dtype, points.dtype)
    out = torch.zeros(batch, scheme.planes, scheme.height, scheme.width, channels, dtype=dtype, device=grad.device)
    if out.numel() and grad.numel():
        add = _add_sorted if torch.are_deterministic_algorithms_enabled() else _add
        add(out, grad.contiguous(), points, tangent, scheme, separate, divisor)
    return out.permute(0, 1, 4, 2, 3)


def _add(out: Tensor, grad: Tensor, points: Tensor, tangent: Tensor | None, scheme: Scheme, separate: bool,
         divisor: int) -> None:
    from .scatter.kernels import plane_gradient_kernel

    (many, count, _), channels = points.shape, grad.shape[-1]
    tile = tuned("plane_gradient", plane_gradient_tile(channels), channels, grad, points)
    blocks = _ceil(count, tile.points * tile.steps)
    _launch(
        plane_gradient_kernel, (many * blocks, _ceil(channels, tile.channels)), tile,
        grad, points, points if tangent is None else tangent, out, count, blocks, scheme.height, scheme.width,
        out.shape[0], *points.stride(), *(points if tangent is None else tangent).stride(),
        **_constants(scheme, channels, tangent, grad.dtype, points.dtype), NEAREST=scheme.mode == "nearest",
        WIDE=needs_int64(out[0, 0]), SEPARATE=separate, SCALE=1 / divisor, STEPS=tile.steps, BLOCK_N=tile.points,
        BLOCK_C=tile.channels,
    )


def _add_sorted(out: Tensor, grad: Tensor, points: Tensor, tangent: Tensor | None, scheme: Scheme, separate: bool,
                divisor: int) -> None:
    from .scatter.kernels import key_kernel, segment_kernel

    (many, count, _), channels, rows = points.shape, grad.shape[-1], out.numel() // grad.shape[-1]
    if rows >= _LARGEST_INT32:
        raise RuntimeError(f"sample_triplane: a repeatable gradient takes less than 2^31 - 1 texels; got {rows}")
    along = points if tangent is None else tangent
    strides = (*points.stride(), *along.stride())
    constants = _constants(scheme, channels, tangent, grad.dtype, points.dtype) | {"NEAREST": scheme.mode == "nearest"}
    only = {name: value for name, value in constants.items() if name != "C"}
    firsts = torch.arange(1, rows + 2, device=out.device) << 32
    tile = tuned("segments", Tile(32, channel_block(channels)), channels, grad, points)
    for start in range(0, many * count, SORTED_CHUNK):
        size = min(SORTED_CHUNK, many * count - start)
        keys = torch.empty(scheme.planes * scheme.corners * size, dtype=torch.int64, device=out.device)
        _launch(
            key_kernel, (_ceil(size, 128),), tile,
            points, along, keys, start, size, count, scheme.height, scheme.width, out.shape[0], *strides,
            **only, BLOCK_N=128,
        )
        keys = torch.sort(keys).values
        ends = torch.searchsorted(keys, firsts)
        _launch(
            segment_kernel, (rows, _ceil(channels, tile.channels)), tile,
            grad, points, along, keys, ends, out, start, size, count, scheme.height, scheme.width, *strides,
            **constants, SEPARATE=separate, SCALE=1 / divisor, BLOCK_K=tile.points, BLOCK_C=tile.channels,
        )


def _ceil(count: int, block: int) -> int:
    """How many blocks hold `count`."""
    return -(-count // block)


def _launch(kernel: Any, grid: tuple[int, ...], tile: Tile, *arguments: Any, **constants: Any) -> None:
    tensor = next(argument for argument in arguments if isinstance(argument, Tensor))
    with device_guard(tensor):
        kernel[grid](*arguments, **constants, **launch_options(tile.warps))


def _constants(scheme: Scheme, channels: int, tangent: Tensor | None, *dtypes: torch.dtype) -> dict[str, Any]:
    """What every kernel is compiled for."""
    import triton.language as tl

    double = compute_dtype(dtypes[0], dtypes[1]) == torch.float64
    return {
        "C": channels,
        "P": scheme.planes,
        "AXES": sum(axis << (2 * i) for i, axis in enumerate(scheme.axes)),
        "ALIGN": scheme.align_corners,
        "PADDING": _PADDINGS[scheme.padding_mode],
        "TANGENT": tangent is not None,
        "ACC": tl.float64 if double else tl.float32,
    }


def _plane_strides(planes: Tensor) -> tuple[int, ...]:
    """Strides over batch, planes, rows and columns in units; 0 over a batch of one, which serves all."""
    unit, (batch, plane, _, row, column) = _unit(planes), planes.stride()
    return (batch // unit if planes.shape[0] > 1 else 0, plane // unit, row // unit, column // unit)


def _unit(planes: Tensor) -> int:
    """The largest power of two, at most 16, that divides every stride over texels."""
    batch, plane, _, row, column = planes.stride()
    return gcd(batch if planes.shape[0] > 1 else 0, plane, row, column, 16)


def _is_wide(planes: Tensor) -> bool:
    """Whether the texels of one plane lie further apart than int32 counts."""
    return needs_int64(planes[0, 0])
