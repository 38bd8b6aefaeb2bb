"""Tri-plane sampling without kernels: weighted sums of rows of channels, by embedding_bag, in chunks that fit a cache.

Stored channels-last, planes are a table of rows: texel (p, j, i) is a row of C contiguous numbers. A point is a "bag"
of 4 P weighted rows, and `embedding_bag` sums bags with vector loads and prefetching. The gradient of the planes is the
transposed product: after a sort by texel, every texel is a bag of the output gradients of the points around it, so it
needs no atomics and always adds in the same order.

Three functions, closed under differentiation up to second order, with the corner weights w(x) and a tangent v:

    sample          sum_k w_k T_k                     with a tangent: sum_k (dw_k/dx v) T_k
    plane_gradient  T_k += w_k g                      with a tangent: T_k += (dw_k/dx v) g
    point_gradient  sum_k dw_k/dx <g, T_k>            with a tangent: sum_k (d2w_k/dx2 v) <g, T_k>
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .reference import texel_position, unpadded_position

#: Points whose indices and weights are computed at once: they stay in the level-2 cache, and each elementwise operation
#: stays below the size from which torch splits it between threads, which costs more than it brings here.
CHUNK = 8192
#: Points that are sorted at once for the planes' gradient; bounds its memory to about 60 MB.
SORTED_CHUNK = 1 << 18


class Scheme(NamedTuple):
    """How points address P planes of one size: `axes` holds the column axis and the row axis of every plane."""

    axes: tuple[int, ...]
    align_corners: bool
    padding_mode: str
    mode: str
    height: int
    width: int

    @property
    def planes(self) -> int:
        """Number of planes."""
        return len(self.axes) // 2

    @property
    def rows(self) -> int:
        """Table rows of one set of planes."""
        return self.planes * self.height * self.width

    @property
    def corners(self) -> int:
        """Texels that a point reads on one plane."""
        return 4 if self.mode == "bilinear" else 1


class Line(NamedTuple):
    """What points read along an axis: the first texel, and the weights of 2 texels (1 if nearest) with their slopes."""

    first: Tensor
    weights: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]


Lines = list[tuple[Line, Line]]


def compute_dtype(planes: torch.dtype, points: torch.dtype) -> torch.dtype:
    """float64 if either is float64, else float32."""
    return torch.promote_types(torch.promote_types(planes, points), torch.float32)


def channels_last(planes: Tensor) -> Tensor:
    """The same planes [B, P, C, H, W] with the channels' stride 1: themselves if they have it, else a copy, once."""
    if planes.stride(2) == 1 or planes.shape[2] == 1:
        return planes
    own = planes[:1] if planes.stride(0) == 0 else planes
    return own.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3).expand(planes.shape)


def sample(planes: Tensor, points: Tensor, tangent: Tensor | None, scheme: Scheme, separate: bool) -> Tensor:
    """Features at points [B, N, 3] of planes [B or 1, P, C, H, W]: [B, N, C], or [B, N, P, C] if `separate`.

    With a tangent [B, N, 3]: the features' derivative along it. Computed and returned in `compute_dtype`.
    """
    dtype, (batch, count, _), channels = compute_dtype(planes.dtype, points.dtype), points.shape, planes.shape[2]
    table, stride = _table(planes, dtype, scheme)
    bags = scheme.planes if separate else 1
    out = torch.empty(batch * count * bags, channels, dtype=dtype, device=planes.device)
    for start, stop, flat, along in _point_chunks(points, tangent, dtype):
        lines = _lines(flat, scheme, _index_dtype(table), along, with_slopes=along is not None)
        indices = _indices(lines, scheme, _first_rows(start, stop, count, stride, flat), (stop - start) * bags)
        weights = torch.empty(stop - start, scheme.planes * scheme.corners, dtype=dtype, device=flat.device)
        _fill_weights(weights.unbind(1), lines, scheme, "value" if along is None else "tangent")
        out[start * bags:stop * bags] = _weighted_rows(table, indices, weights)
    return out.view(batch, count, *((scheme.planes,) if separate else ()), channels)


def point_gradient(grad: Tensor, planes: Tensor, points: Tensor, tangent: Tensor | None, scheme: Scheme,
                   separate: bool) -> Tensor:
    """Gradient [B, N, 3] of the points from that of the features; with a tangent, its derivative along the tangent."""
    dtype, (batch, count, _), channels = compute_dtype(planes.dtype, points.dtype), points.shape, planes.shape[2]
    out = torch.zeros(batch * count, 3, dtype=dtype, device=planes.device)
    if scheme.mode == "nearest":
        return out.view(batch, count, 3)
    table, stride = _table(planes, dtype, scheme)
    rows = grad.reshape(batch * count, scheme.planes if separate else 1, channels)
    for start, stop, flat, along in _point_chunks(points, tangent, dtype):
        size = stop - start
        lines = _lines(flat, scheme, _index_dtype(table), None, with_slopes=True)
        indices = _indices(lines, scheme, _first_rows(start, stop, count, stride, flat), size * scheme.planes)
        weights = torch.empty(size, scheme.planes * scheme.corners, dtype=dtype, device=flat.device)
        for side, rule in ((0, "column slope"), (1, "row slope")) if along is None else ((0, "mixed"),):
            _fill_weights(weights.unbind(1), lines, scheme, rule)
            slopes = _weighted_rows(table, indices, weights).view(size, scheme.planes, channels)
            dots = slopes.mul_(rows[start:stop]).sum(-1).unbind(1)
            for dot, column, row in zip(dots, scheme.axes[::2], scheme.axes[1::2], strict=True):
                if along is None:
                    axis = (column, row)[side]
                    # a coordinate that cannot move what is read has no gradient, even beside one that is no number
                    still = torch.stack([slope == 0 for slope in lines[axis][side].slopes]).all(0)
                    out[start:stop, axis] += dot.masked_fill(still, 0.0)
                else:
                    out[start:stop, column] += dot * along[:, row]
                    out[start:stop, row] += dot * along[:, column]
    return out.view(batch, count, 3)


def plane_gradient(grad: Tensor, points: Tensor, tangent: Tensor | None, scheme: Scheme, separate: bool,
                   batch: int) -> Tensor:
    """Gradient [batch, P, C, H, W] of the planes, stored channels-last, from that of the features; batch is 1 or B."""
    dtype, count, channels = compute_dtype(grad.dtype, points.dtype), points.shape[1], grad.shape[-1]
    rows, flat = grad.reshape(-1, channels).to(dtype), points.reshape(-1, 3)
    along = None if tangent is None else tangent.reshape(-1, 3)
    per_point = scheme.planes if separate else 1
    chunks = list(_sorted_chunks(batch, points.shape[0], count, scheme.rows))
    out = rows.new_zeros(batch * scheme.rows if len(chunks) != 1 else 0, channels)
    for first, last, start, stop in chunks:
        part = _sorted_rows(rows[start * per_point:stop * per_point], flat[start:stop],
                            None if along is None else along[start:stop], scheme, separate, last - first)
        if len(chunks) == 1:
            out = part
        else:
            out[first * scheme.rows:last * scheme.rows] += part
    return out.view(batch, scheme.planes, scheme.height, scheme.width, channels).permute(0, 1, 4, 2, 3)


def _sorted_rows(rows: Tensor, points: Tensor, tangent: Tensor | None, scheme: Scheme, separate: bool,
                 sets: int) -> Tensor:
    """Sum of the weighted feature gradients `rows` in every texel of `sets` sets of planes with as many points each.

    A key holds the texel's row plus one in its upper 32 bits; below them the place of its weight, whose lower `bits`
    are the point. No two keys are equal, so that any sort gives the same order of addition in every texel.
    """
    size, corners = points.shape[0], scheme.planes * scheme.corners
    bits = max(size - 1, 1).bit_length()
    keys = torch.empty(corners, size, dtype=torch.int64, device=points.device)
    weights = torch.empty(corners, 1 << bits, dtype=rows.dtype, device=points.device)
    stride = scheme.rows if sets > 1 else 0
    for start, stop, flat, along in _point_chunks(points, tangent, rows.dtype):
        lines = _lines(flat, scheme, torch.int64, along, with_slopes=along is not None)
        place = torch.arange(start, stop, device=points.device)
        first = _first_rows(start, stop, size // sets, stride, flat)
        for k, (base, offset) in enumerate(_corners(lines, scheme, first)):
            torch.add(place, base, alpha=1 << 32, out=keys[k, start:stop]).add_(((offset + 1) << 32) + (k << bits))
        _fill_weights(weights[:, start:stop].unbind(0), lines, scheme, "value" if tangent is None else "tangent")
    ordered = _sort(keys.view(-1))
    place = ordered & ((1 << 32) - 1)
    ends = torch.bincount(ordered >> 32, minlength=sets * scheme.rows + 1).cumsum(0)
    source = place & ((1 << bits) - 1)
    if separate:
        source = source.mul_(scheme.planes).add_((place >> bits).div_(scheme.corners, rounding_mode="floor"))
    return functional.embedding_bag(source, rows, ends, mode="sum", include_last_offset=True,
                                    per_sample_weights=weights.view(-1).index_select(0, place))


def _sort(keys: Tensor) -> Tensor:
    """The keys in ascending order; on a CPU by numpy, whose vectorised sort is several times faster than torch's."""
    if keys.device.type != "cpu":
        return torch.sort(keys).values
    keys.numpy().sort()
    return keys


def _weighted_rows(table: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    return functional.embedding_bag(indices, table, mode="sum", per_sample_weights=weights.view(indices.shape))


def _table(planes: Tensor, dtype: torch.dtype, scheme: Scheme) -> tuple[Tensor, int]:
    """The planes as rows [B P H W, C], a view if they are stored channels-last in `dtype`; and rows per batch entry.

    The second is 0 where all entries share one set of planes, which is then in the table once.
    """
    if planes.stride(0) == 0:
        planes = planes[:1]
    rows = planes.permute(0, 1, 3, 4, 2).to(dtype).contiguous()
    return rows.view(planes.shape[0] * scheme.rows, planes.shape[2]), scheme.rows * (planes.shape[0] > 1)


def _index_dtype(table: Tensor) -> torch.dtype:
    return torch.int32 if table.shape[0] < 2**31 else torch.int64


def _chunks(total: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, total)) for start in range(0, total, max(size, 1)))


def _point_chunks(points: Tensor, tangent: Tensor | None,
                  dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
    """All points in chunks: start, stop, points [n, 3] and tangents [n, 3] in `dtype`; on a GPU in one."""
    flat, along = points.reshape(-1, 3), None if tangent is None else tangent.reshape(-1, 3)
    for start, stop in _chunks(flat.shape[0], flat.shape[0] if points.is_cuda else CHUNK):
        yield start, stop, flat[start:stop].to(dtype), None if along is None else along[start:stop].to(dtype)


def _sorted_chunks(batch: int, many: int, count: int, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Ranges of batch entries with ranges of their points: first, last, start, stop; entries together where small."""
    if batch == 1:
        yield from ((0, 1, start, stop) for start, stop in _chunks(many * count, SORTED_CHUNK))
        return
    together = max(1, min(SORTED_CHUNK // max(count, 1), (2**31 - 2) // rows))
    for first, last in _chunks(batch, together):
        for start, stop in _chunks((last - first) * count, SORTED_CHUNK):
            yield first, last, first * count + start, first * count + stop


def _first_rows(start: int, stop: int, count: int, stride: int, like: Tensor) -> Tensor | int:
    """First table row of the batch entry of each of the points start ... stop - 1; an int where all have the same."""
    if stride == 0 or start // count == (stop - 1) // count:
        return start // count * stride if stride else 0
    entry = torch.arange(start, stop, device=like.device).div_(count, rounding_mode="floor")
    return entry.mul_(stride)


def _lines(points: Tensor, scheme: Scheme, index_dtype: torch.dtype, tangent: Tensor | None,
           with_slopes: bool) -> Lines:
    """For each axis of points [n, 3] what is read along a row and along a column; computed once for square planes."""
    coordinates = points.new_empty(3, points.shape[0])
    for axis in range(3):
        coordinates[axis] = points[:, axis]
    speed = None if tangent is None else tangent.t()
    across = _line(coordinates, scheme.width, scheme, index_dtype, speed, with_slopes)
    down = across
    if scheme.height != scheme.width:
        down = _line(coordinates, scheme.height, scheme, index_dtype, speed, with_slopes)
    return list(zip(across, down, strict=True))


def _line(coordinate: Tensor, size: int, scheme: Scheme, index_dtype: torch.dtype, speed: Tensor | None,
          with_slopes: bool) -> list[Line]:
    """Texels read by each `coordinate` [3, n] on a line of `size` texels; slopes are times `speed` [3, n] if given.

    The two texels are always neighbours on the line, also for positions outside, where the hat weights
    max(0, 1 - |position - texel|) are zero by themselves: no masks. What is not a number reads texel 0.
    """
    position = texel_position(coordinate, size, scheme.align_corners, scheme.padding_mode)
    if scheme.mode == "nearest":
        texel = position.round().nan_to_num_(-1.0)
        inside = ((texel >= 0) & (texel < size)).to(position.dtype)
        return _by_axis(texel.clamp_(0, size - 1).to(index_dtype), [inside], [torch.zeros_like(inside)])
    first = position.floor().clamp_(0, max(size - 2, 0)).nan_to_num_(0.0)
    offset = position.sub_(first)
    weights = [_hat(offset), _hat(offset - 1)]
    slopes = []
    if with_slopes:
        slope = _slope(coordinate, size, scheme)
        slope = slope if speed is None else slope * speed
        slopes = [_hat_slope(offset) * slope, _hat_slope(offset - 1) * slope]
    if size == 1:
        for line in (weights, slopes):
            line[1:] = [torch.zeros_like(w) for w in line[1:]]
    return _by_axis(first.to(index_dtype), weights, slopes)


def _by_axis(first: Tensor, weights: list[Tensor], slopes: list[Tensor]) -> list[Line]:
    by_axis = [zip(*(t.unbind(0) for t in part), strict=True) if part else ((), (), ()) for part in (weights, slopes)]
    return [Line(*parts) for parts in zip(first.unbind(0), *by_axis, strict=True)]


def _hat(offset: Tensor) -> Tensor:
    return (1 - offset.abs()).clamp_(min=0)


def _hat_slope(offset: Tensor) -> Tensor:
    """Derivative of the hat, at its corners the one from the right, as floor makes it."""
    return ((offset >= -1) & (offset < 0)).to(offset.dtype) - ((offset >= 0) & (offset < 1)).to(offset.dtype)


def _slope(coordinate: Tensor, size: int, scheme: Scheme) -> Tensor:
    """Derivative of `texel_position` with respect to the coordinate."""
    slope = torch.full_like(coordinate, (size - 1) / 2 if scheme.align_corners else size / 2)
    position = unpadded_position(coordinate, size, scheme.align_corners)
    if scheme.padding_mode == "zeros":
        return torch.where((position < -1) | (position > size), 0.0, slope)
    moved = texel_position(coordinate, size, scheme.align_corners, scheme.padding_mode)
    if scheme.padding_mode == "reflection" and size > 1:
        low, span = (0.0, size - 1) if scheme.align_corners else (-0.5, size)
        backwards = torch.floor((position - low).abs() / span) % 2 == 1
        slope = torch.where(backwards ^ (position < low), -slope, slope)
    return torch.where((moved > 0) & (moved < size - 1), slope, 0.0)


def _corners(lines: Lines, scheme: Scheme, first: Tensor | int) -> Iterator[tuple[Tensor, int]]:
    """The table row of every corner of every plane: a tensor [n] that the corners of a plane share, and an offset."""
    across, down = min(1, scheme.width - 1), scheme.width * min(1, scheme.height - 1)
    corners = (0, across, down, down + across) if scheme.mode == "bilinear" else (0,)
    for plane in range(scheme.planes):
        columns, rows = lines[scheme.axes[2 * plane]][0], lines[scheme.axes[2 * plane + 1]][1]
        base = torch.add(columns.first, rows.first, alpha=scheme.width)
        start = plane * scheme.height * scheme.width
        if isinstance(first, Tensor):
            base += first
        else:
            start += first
        yield from ((base, start + corner) for corner in corners)


def _indices(lines: Lines, scheme: Scheme, first: Tensor | int, bags: int) -> Tensor:
    """The table rows of all corners of all points, [bags, rows of a bag]."""
    base = lines[0][0].first
    indices = torch.empty(base.shape[0], scheme.planes * scheme.corners, dtype=base.dtype, device=base.device)
    for target, (row, offset) in zip(indices.unbind(1), _corners(lines, scheme, first), strict=True):
        torch.add(row, offset, out=target)
    return indices.view(bags, -1)


def _fill_weights(weights: Sequence[Tensor], lines: list[tuple[Line, Line]], scheme: Scheme, rule: str) -> None:
    """Write the weight of every corner k of every point into `weights[k]` [n].

    The rules: "value" is the bilinear weight, "column slope" and "row slope" its two derivatives, "mixed" the second
    one, "tangent" the derivative along the tangent that the slopes contain.
    """
    corner = iter(weights)
    for plane in range(scheme.planes):
        columns, rows = lines[scheme.axes[2 * plane]][0], lines[scheme.axes[2 * plane + 1]][1]
        for j in range(len(rows.weights)):
            for i in range(len(columns.weights)):
                across = columns.slopes[i] if rule in ("column slope", "mixed", "tangent") else columns.weights[i]
                down = rows.slopes[j] if rule in ("row slope", "mixed") else rows.weights[j]
                target = torch.mul(across, down, out=next(corner))
                if rule == "tangent":
                    target.addcmul_(columns.weights[i], rows.slopes[j])
