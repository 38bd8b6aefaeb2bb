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

from .reference import texel_position

#: Points handled at once: forward (their indices, weights and features fit the level-2 cache) and backward (memory).
FORWARD_CHUNK = 8192
BACKWARD_CHUNK = 1 << 18


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
    """The texels that points read along one axis: 1 or 2 indices and weights, and the weights' slopes if asked for."""

    indices: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]


def compute_dtype(planes: torch.dtype, points: torch.dtype) -> torch.dtype:
    """float64 if either is float64, else float32."""
    return torch.promote_types(torch.promote_types(planes, points), torch.float32)


def sample(planes: Tensor, points: Tensor, tangent: Tensor | None, scheme: Scheme, separate: bool) -> Tensor:
    """Features at points [B, N, 3] of planes [B or 1, P, C, H, W]: [B, N, C], or [B, N, P, C] if `separate`.

    With a tangent [B, N, 3]: the features' derivative along it. Computed and returned in `compute_dtype`.
    """
    dtype, (batch, count, _), channels = compute_dtype(planes.dtype, points.dtype), points.shape, planes.shape[2]
    table, stride = _table(planes, dtype, scheme)
    total, bags = batch * count, scheme.planes if separate else 1
    out = torch.empty(total * bags, channels, dtype=dtype, device=planes.device)
    for start, stop, flat, along in _point_chunks(points, tangent, FORWARD_CHUNK, dtype):
        size = stop - start
        indices, weights = _bag_memory((size, scheme.planes * scheme.corners), _index_dtype(table.shape[0]), flat)
        lines = _lines(flat, scheme, indices.dtype, along, with_slopes=along is not None)
        _fill_indices(indices.unbind(1), lines, scheme, _first_rows(start, stop, count, stride, indices))
        _fill_weights(weights.unbind(1), lines, scheme, "value" if along is None else "tangent")
        out[start * bags:stop * bags] = _weighted_rows(table, indices.view(size * bags, -1), weights)
    return out.view(batch, count, *((scheme.planes,) if separate else ()), channels)


def point_gradient(grad: Tensor, planes: Tensor, points: Tensor, tangent: Tensor | None, scheme: Scheme,
                   separate: bool) -> Tensor:
    """Gradient [B, N, 3] of the points from that of the features; with a tangent, its derivative along the tangent."""
    dtype, (batch, count, _), channels = compute_dtype(planes.dtype, points.dtype), points.shape, planes.shape[2]
    table, stride = _table(planes, dtype, scheme)
    rows = grad.reshape(batch * count, scheme.planes if separate else 1, channels)
    out = torch.zeros(batch * count, 3, dtype=dtype, device=planes.device)
    if scheme.mode == "nearest":
        return out.view(batch, count, 3)
    for start, stop, flat, along in _point_chunks(points, tangent, FORWARD_CHUNK, dtype):
        size = stop - start
        indices, weights = _bag_memory((size, scheme.planes * scheme.corners), _index_dtype(table.shape[0]), flat)
        lines = _lines(flat, scheme, indices.dtype, None, with_slopes=True)
        _fill_indices(indices.unbind(1), lines, scheme, _first_rows(start, stop, count, stride, indices))
        for side, rule in ((0, "column slope"), (1, "row slope")) if along is None else ((2, "mixed"),):
            _fill_weights(weights.unbind(1), lines, scheme, rule)
            slope = _weighted_rows(table, indices.view(size * scheme.planes, -1), weights).view(size, -1, channels)
            dots = slope.mul_(rows[start:stop]).sum(-1)
            for plane in range(scheme.planes):
                column, row = scheme.axes[2 * plane:2 * plane + 2]
                if along is None:
                    out[start:stop, (column, row)[side]] += dots[:, plane]
                else:
                    out[start:stop, column] += dots[:, plane] * along[:, row]
                    out[start:stop, row] += dots[:, plane] * along[:, column]
    return out.view(batch, count, 3)


def plane_gradient(grad: Tensor, points: Tensor, tangent: Tensor | None, scheme: Scheme, separate: bool,
                   batch: int) -> Tensor:
    """Gradient [batch, P, C, H, W] of the planes, stored channels-last, from that of the features; batch is 1 or B."""
    dtype, count, channels = compute_dtype(grad.dtype, points.dtype), points.shape[1], grad.shape[-1]
    rows = grad.reshape(-1, channels).to(dtype)
    per_point = scheme.planes if separate else 1
    chunks = list(_gradient_chunks(batch, points.shape[0], count))
    out = rows.new_zeros(batch * scheme.rows if len(chunks) != 1 else 0, channels)
    flat, along = points.reshape(-1, 3), None if tangent is None else tangent.reshape(-1, 3)
    for first, last, start, stop in chunks:
        part = _sorted_rows(
            rows[start * per_point:stop * per_point], flat[start:stop].to(dtype),
            None if along is None else along[start:stop].to(dtype), scheme, separate, last - first)
        if len(chunks) == 1:
            out = part
        else:
            out[first * scheme.rows:last * scheme.rows] += part
    return out.view(batch, scheme.planes, scheme.height, scheme.width, channels).permute(0, 1, 4, 2, 3)


def _sorted_rows(rows: Tensor, points: Tensor, tangent: Tensor | None, scheme: Scheme, separate: bool,
                 sets: int) -> Tensor:
    """Sum of the weighted feature gradients `rows` in every texel of `sets` sets of planes with as many points each."""
    size, corners = points.shape[0], scheme.planes * scheme.corners
    keys, weights = _bag_memory((corners, size), _index_dtype(sets * scheme.rows), points)
    lines = _lines(points, scheme, keys.dtype, tangent, with_slopes=tangent is not None)
    _fill_indices(keys.unbind(0), lines, scheme, _first_rows(0, size, size // sets, scheme.rows * (sets > 1), keys))
    _fill_weights(weights.unbind(0), lines, scheme, "value" if tangent is None else "tangent")
    ordered, order = torch.sort(keys.view(-1), stable=True)
    offsets = functional.pad(torch.bincount(ordered, minlength=sets * scheme.rows).cumsum(0), (1, 0))
    source = order % size
    if separate:
        source = source * scheme.planes + order // (size * scheme.corners)
    return functional.embedding_bag(source, rows, offsets, mode="sum", include_last_offset=True,
                                    per_sample_weights=weights.view(-1)[order])


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


def _index_dtype(rows: int) -> torch.dtype:
    return torch.int32 if rows < 2**31 else torch.int64


def _bag_memory(shape: tuple[int, int], index_dtype: torch.dtype, like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty(shape, dtype=index_dtype, device=like.device), like.new_empty(shape)


def _chunks(total: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, total)) for start in range(0, total, size))


def _point_chunks(points: Tensor, tangent: Tensor | None, size: int,
                  dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
    """The points of the whole batch in chunks: start, stop, points [n, 3] and tangents [n, 3] in `dtype`."""
    flat, along = points.reshape(-1, 3), None if tangent is None else tangent.reshape(-1, 3)
    for start, stop in _chunks(flat.shape[0], flat.shape[0] if points.is_cuda else size):
        yield start, stop, flat[start:stop].to(dtype), None if along is None else along[start:stop].to(dtype)


def _gradient_chunks(batch: int, many: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Ranges of batch entries with ranges of their points: first, last, start, stop; entries together where small."""
    if batch == 1:
        yield from ((0, 1, start, stop) for start, stop in _chunks(many * count, BACKWARD_CHUNK))
        return
    for first, last in _chunks(batch, max(1, BACKWARD_CHUNK // max(count, 1))):
        for start, stop in _chunks((last - first) * count, BACKWARD_CHUNK):
            yield first, last, first * count + start, first * count + stop


def _first_rows(start: int, stop: int, count: int, stride: int, like: Tensor) -> Tensor | int:
    """First table row of the batch entry of each of the points start ... stop - 1; an int where all have the same."""
    if stride == 0 or start // count == (stop - 1) // count:
        return start // count * stride if stride else 0
    entry = torch.arange(start, stop, device=like.device).div_(count, rounding_mode="floor")
    return entry.mul_(stride).to(like.dtype)


def _lines(points: Tensor, scheme: Scheme, index_dtype: torch.dtype, tangent: Tensor | None,
           with_slopes: bool) -> list[tuple[Line, Line]]:
    """For each axis of points [n, 3] what is read along a row and along a column; computed once for square planes."""
    coordinates = points.t().contiguous()
    speed = None if tangent is None else tangent.t()
    both = [_line(coordinates, size, scheme, index_dtype, speed, with_slopes)
            for size in sorted({scheme.width, scheme.height}, reverse=scheme.width > scheme.height)]
    return [(_of_axis(both[0], axis), _of_axis(both[-1], axis)) for axis in range(3)]


def _of_axis(line: Line, axis: int) -> Line:
    return Line(*(tuple(t[axis] for t in part) for part in line))


def _line(coordinate: Tensor, size: int, scheme: Scheme, index_dtype: torch.dtype, speed: Tensor | None,
          with_slopes: bool) -> Line:
    """Texels read by `coordinate` [3, n] on lines of `size` texels; slopes are times `speed` [3, n] if given."""
    position = texel_position(coordinate, size, scheme.align_corners, scheme.padding_mode)
    if scheme.mode == "nearest":
        texel = position.round().nan_to_num_(-1.0).clamp_(-1, size)
        inside = ((texel >= 0) & (texel < size)).to(position.dtype)
        slopes = (torch.zeros_like(inside),) if with_slopes else ()
        return Line((texel.clamp_(0, size - 1).to(index_dtype),), (inside,), slopes)
    texel = position.floor()
    fraction = position - texel
    # outside by at least one texel is all that matters; what is not a number reads texel 0 with a weight that is none
    texel.clamp_(-2, size).nan_to_num_(0.0)
    first, second = (texel >= 0) & (texel < size), (texel >= -1) & (texel < size - 1)
    slopes = ()
    if with_slopes:
        slope = _slope(coordinate, size, scheme)
        slope = slope if speed is None else slope * speed
        slopes = (-slope * first, slope * second)
    low = texel.to(index_dtype)
    return Line((low.clamp(0, size - 1), low.add_(1).clamp_(0, size - 1)),
                ((1 - fraction).mul_(first), fraction.mul_(second)), slopes)


def _slope(coordinate: Tensor, size: int, scheme: Scheme) -> Tensor:
    """Derivative of `texel_position` with respect to the coordinate."""
    scale = (size - 1) / 2 if scheme.align_corners else size / 2
    if scheme.padding_mode == "zeros":
        return torch.full_like(coordinate, scale)
    moved = texel_position(coordinate, size, scheme.align_corners, scheme.padding_mode)
    slope = torch.full_like(coordinate, scale)
    if scheme.padding_mode == "reflection":
        low = 0.0 if scheme.align_corners else -0.5
        distance = texel_position(coordinate, size, scheme.align_corners, "zeros") - low
        backwards = torch.floor(distance.abs() / (size - 1 - 2 * low)) % 2 == 1
        slope = torch.where(backwards ^ (distance < 0), -slope, slope)
    return torch.where((moved > 0) & (moved < size - 1), slope, 0.0)


def _fill_indices(indices: Sequence[Tensor], lines: list[tuple[Line, Line]], scheme: Scheme,
                  first: Tensor | int) -> None:
    """Write the table row of every corner k of every point into `indices[k]` [n]."""
    corner = iter(indices)
    for plane in range(scheme.planes):
        columns, rows = lines[scheme.axes[2 * plane]][0], lines[scheme.axes[2 * plane + 1]][1]
        for row in rows.indices:
            start = (row * scheme.width).add_(first).add_(plane * scheme.height * scheme.width)
            for column in columns.indices:
                torch.add(start, column, out=next(corner))


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
