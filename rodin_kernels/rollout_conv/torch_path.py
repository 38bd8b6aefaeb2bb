"""The 3D-aware convolution without its 3C-channel input: the exact collapse, in PyTorch.

A line replicated along an axis is constant there, so its part of the convolution needs one line convolution per kernel
row (column), not one convolution per pixel. With U_i = conv1d(l; K1[:, :, i, :]) for the line l along the columns and
V_j = conv1d(m; K2[:, :, :, j]) for the line m along the rows:

    y[o, h, w] = conv2d(own; K0)[o, h, w] + sum_i live_i(h) U_i[o, w] + sum_j live_j(w) V_j[o, h]

live_i(h) is 1 where tap i reads a real row at output row h, 0 where it reads padding. Planes of R x R take
3 / (1 + 2 / R) times fewer operations than the definition; the backward likewise, since dU_i and dV_j are sums of the
gradient over rows and columns. Everything lies in memory as [N, H, W, C], the fast order on CPUs and GPUs alike.

Time against the definition in float32 on two CPU cores with AVX2, planes of 32 to 256 with 64 to 384 channels: 2.4 to
2.9 times less for the forward alone, 2.2 to 2.5 with backward; as accurate as the definition in whichever memory order
torch adds up better.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..layouts import cross_sources
from .library import convolve, convolve_backward
from .line_products import line_gradients, line_vectors

#: Elements of one sample from which on transposing plane by plane pays for its Python loop.
_LARGE = 1 << 16


class Step(NamedTuple):
    """How the kernel moves: stride, zero padding, and whether the convolution is transposed.

    A transposed convolution has output padding stride - 1.
    """

    stride: int
    padding: int
    transposed: bool

    def output_size(self, size: int, kernel: int) -> int:
        """Output length of an axis of `size` elements under `kernel` taps; can be below 1 if nothing fits."""
        if self.transposed:
            return (size - 1) * self.stride - 2 * self.padding + kernel + self.stride - 1
        return (size + 2 * self.padding - kernel) // self.stride + 1


@lru_cache(maxsize=1024)
def live_taps(size: int, kernel: int, step: Step) -> tuple[tuple[slice, slice], ...]:
    """Output positions of an axis, grouped by which taps read real elements: pairs (positions, taps).

    The groups cover every position once: an interior and a few single positions at each border, for a transposed
    convolution so for each residue of the stride. A group whose taps all read padding has an empty slice of taps.
    """
    period = step.stride if step.transposed else 1
    groups: list[tuple[slice, slice]] = []
    for residue in range(min(period, step.output_size(size, kernel))):
        previous: tuple[int, ...] | None = None
        for position in range(residue, step.output_size(size, kernel), period):
            if step.transposed:
                reads = [(position + step.padding - tap, tap) for tap in range(kernel)]
                taps = tuple(tap for at, tap in reads if at % period == 0 and 0 <= at // period < size)
            else:
                first = step.stride * position - step.padding
                taps = tuple(tap for tap in range(kernel) if 0 <= first + tap < size)
            if taps == previous:
                groups[-1] = (slice(groups[-1][0].start, position + 1, period), groups[-1][1])
            else:
                live = slice(taps[0], taps[-1] + 1, period) if taps else slice(0, 0)
                groups.append((slice(position, position + 1, period), live))
            previous = taps
    return tuple(groups)


def forward(
    planes: Sequence[Tensor], weight: Tensor, bias: Tensor | None, layout: Sequence[str], step: Step
) -> list[Tensor]:
    """The convolution of one stacked set of planes [B, 3, C, H, W], or of three planes [B, C, H, W] of their own sizes.

    Returns as many tensors as `planes` has, in channels-last memory.
    """
    groups = _groups([_channels_last(x) for x in planes], weight, layout)
    kernels = weight.unbind() if weight.ndim == 5 else [weight] * len(groups)
    shifts = bias.unbind() if bias is not None and bias.ndim == 2 else [bias] * len(groups)
    results = [_convolve(*g, k, shift, step) for g, k, shift in zip(groups, kernels, shifts, strict=True)]
    return _assemble(results, len(planes))


def backward(
    grads: Sequence[Tensor],
    planes: Sequence[Tensor],
    weight: Tensor,
    layout: Sequence[str],
    step: Step,
    needs: tuple[bool, bool, bool],
) -> list[Tensor]:
    """Gradients of planes (in as many tensors, in channels-last memory), weight and bias: those that `needs` names.

    The two thirds that are lines ask only for sums of `grads` over its rows and over its columns.
    """
    need_planes, need_weight, need_bias = needs
    groups = _groups([_channels_last(x) for x in planes], weight, layout)
    kernels = weight.unbind() if weight.ndim == 5 else [weight] * len(groups)
    given = [_channels_last(g) for g in grads]
    given = [given[0].flatten(0, 1)] if len(groups) == 1 else _three(given)
    found = [_convolve_backward(y, *g, k, step, needs) for y, g, k in zip(given, groups, kernels, strict=True)]
    own, columns, rows, weights, biases = (list(part) for part in zip(*found, strict=True))
    results: list[Tensor] = []
    if need_planes:
        _add_lines(_unmerge(own), _unmerge(columns), _unmerge(rows), layout)
        results += _assemble(own, len(planes))
    join = torch.stack if weight.ndim == 5 else _total
    return results + ([join(weights)] if need_weight else []) + ([join(biases)] if need_bias else [])


def _convolve(x: Tensor, column: Tensor, row: Tensor, weight: Tensor, bias: Tensor | None, step: Step) -> Tensor:
    """x [N, H, W, C], line along the columns [N, W, C] and along the rows [N, H, C] -> [N, H', W', O]."""
    own, along_columns, along_rows = weight.split(x.shape[-1], 1)
    kernel = weight.shape[-1]
    y = convolve(x.permute(0, 3, 1, 2), own, bias, step).permute(0, 2, 3, 1).contiguous()
    u = line_vectors(column, along_columns, 2, step)
    for positions, taps in live_taps(x.shape[1], kernel, step):
        y[:, positions] += u[:, :, taps].sum(2).unsqueeze(1)
    v = line_vectors(row, along_rows, 3, step)
    for positions, taps in live_taps(x.shape[2], kernel, step):
        y[:, :, positions] += v[:, :, taps].sum(2).unsqueeze(2)
    return y


def _convolve_backward(
    grad: Tensor, x: Tensor, column: Tensor, row: Tensor, weight: Tensor, step: Step, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of what `_convolve` takes; what is not needed is an empty tensor."""
    need_x, need_weight, need_bias = needs
    own, along_columns, along_rows = weight.split(x.shape[-1], 1)
    kernel, nothing = weight.shape[-1], weight.new_empty(0)
    sums = [grad[:, positions].sum(1, dtype=column.dtype) for positions, _ in live_taps(x.shape[1], kernel, step)]
    grad_bias = _total(sums).sum((0, 1)).to(grad.dtype) if need_bias else nothing
    if not (need_x or need_weight):
        return nothing, nothing, nothing, nothing, grad_bias
    grad_u = _by_tap(sums, live_taps(x.shape[1], kernel, step), kernel)
    sums = [grad[:, :, positions].sum(2, dtype=row.dtype) for positions, _ in live_taps(x.shape[2], kernel, step)]
    grad_v = _by_tap(sums, live_taps(x.shape[2], kernel, step), kernel)
    mask = (need_x, need_weight)
    y, x = grad.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
    grad_x, grad_own = convolve_backward(y, x, own, step, mask)
    grad_column, grad_along_columns = line_gradients(grad_u, column, along_columns, 2, step, mask)
    grad_row, grad_along_rows = line_gradients(grad_v, row, along_rows, 3, step, mask)
    grad_weight = nothing
    if need_weight:
        # joined with the channels last, as they lie, then turned once: a third of the time of a plain cat
        slots = [slot.permute(0, 2, 3, 1).to(weight.dtype) for slot in (grad_own, grad_along_columns, grad_along_rows)]
        grad_weight = torch.cat(slots, 3).permute(0, 3, 1, 2).contiguous()
    grad_x = grad_x.permute(0, 2, 3, 1).contiguous() if need_x else nothing
    return grad_x, grad_column, grad_row, grad_weight, grad_bias


def _by_tap(sums: list[Tensor], groups: tuple[tuple[slice, slice], ...], kernel: int) -> Tensor:
    """Gradient of the line convolutions' results [N, L, k, O]: for each tap the sum of the groups where it is live."""
    result = sums[0].new_zeros(*sums[0].shape[:2], kernel, sums[0].shape[2])
    for part, (_, taps) in zip(sums, groups, strict=True):
        result[:, :, taps] += part.unsqueeze(2)
    return result


_sources = lru_cache(maxsize=64)(cross_sources)


def _lines(stored: Sequence[Tensor], layout: Sequence[str]) -> tuple[list[Tensor], list[Tensor]]:
    """Means of the planes in at least float32, sorted by the plane that they go to: along columns, along rows.

    Planes as in `_groups`; means are [B, L, C] each.
    """
    wide = torch.promote_types(stored[0].dtype, torch.float32)
    # stacked planes are averaged in one go for each axis
    over_rows, over_columns = (_three([x.mean(dim, dtype=wide) for x in stored]) for dim in (-3, -2))
    columns, rows = zip(*_sources(tuple(layout)), strict=True)
    along_columns, along_rows = (
        [(over_rows if dim == -2 else over_columns)[source] for source, dim in places] for places in (columns, rows)
    )
    return along_columns, along_rows


def _add_lines(own: Sequence[Tensor], columns: Sequence[Tensor], rows: Sequence[Tensor], layout: Sequence[str]) -> None:
    """The transpose of `_lines`, added to `own` in place: each line's gradient, spread over what was averaged."""
    for target, places in enumerate(_sources(tuple(layout))):
        for line, (source, dim) in zip((columns[target], rows[target]), places, strict=True):
            own[source].add_((line / own[source].shape[dim - 1]).unsqueeze(dim - 1))


def _groups(stored: Sequence[Tensor], weight: Tensor, layout: Sequence[str]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What is convolved together: plane, line along its columns, line along its rows.

    One group with all planes in the batch where they are stacked and share the weight, else three.
    """
    columns, rows = _lines(stored, layout)
    if len(stored) == 1 and weight.ndim == 4:
        return [(stored[0].flatten(0, 1), torch.stack(columns, 1).flatten(0, 1), torch.stack(rows, 1).flatten(0, 1))]
    return list(zip(_three(stored), columns, rows, strict=True))


def _three(stored: Sequence[Tensor]) -> list[Tensor]:
    """The three planes, one by one, of a stacked or a separate set in [., H, W, C] order."""
    return list(stored[0].unbind(1)) if len(stored) == 1 else list(stored)


def _unmerge(parts: Sequence[Tensor]) -> list[Tensor]:
    """The three planes' parts, as views, of one group or three."""
    return list(parts[0].unflatten(0, (-1, 3)).unbind(1)) if len(parts) == 1 else list(parts)


def _assemble(parts: Sequence[Tensor], tensors: int) -> list[Tensor]:
    """The groups' results in the form of the planes that came in: one stacked tensor or three, channels before rows."""
    if tensors == 1:
        parts = [parts[0].unflatten(0, (-1, 3)) if len(parts) == 1 else torch.stack(list(parts), 1)]
    return [part.movedim(-1, -3) for part in parts]


def _channels_last(planes: Tensor) -> Tensor:
    """[..., C, H, W] -> [..., H, W, C], contiguous; a copy only if the memory is not in this order already."""
    turned = planes.movedim(-3, -1)
    if turned.is_contiguous() or not planes.is_contiguous() or planes.is_cuda or planes[0].numel() < _LARGE:
        return turned.contiguous()
    # torch transposes matrices in blocks, which is up to four times faster here than its general copy
    result = planes.new_empty(turned.shape)
    pairs = zip(result.flatten(0, -4).flatten(1, 2), planes.flatten(0, -4).flatten(2), strict=True)
    for target, source in pairs:
        target.copy_(source.t())
    return result


def _total(parts: Sequence[Tensor]) -> Tensor:
    """The sum of a few tensors, accumulated in at least float32."""
    if len(parts) == 1:
        return parts[0]
    wide = torch.promote_types(parts[0].dtype, torch.float32)
    return torch.stack([part.to(wide) for part in parts]).sum(0).to(parts[0].dtype)
