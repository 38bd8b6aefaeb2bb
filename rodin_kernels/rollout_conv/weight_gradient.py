"""The launches of the weight gradient: own plane, lines along columns, lines along rows, and the sum of their parts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..launch import launch_options, needs_int64
from .launches import Lines, launch_rule, precision, strides
from .plan import Plan
from .torch_path import Step

#: Elements of partial sums in float32 that are worth it.
_MOST_PARTIAL = 1 << 25


class _Slot(NamedTuple):
    """One third of the weight's input: a gradient, what it meets, their sizes and strides as the kernel takes them."""

    grad: Tensor
    x: Tensor
    size: tuple[int, int]
    size_in: tuple[int, int]
    grad_strides: tuple[int, ...]
    x_strides: tuple[int, ...]
    wide: bool


def weight_part(
    plan: Plan, grad: Tensor, x: Tensor, vectors: Lines, lines: Lines, weight: Tensor, own: Tensor | None, step: Step,
    result: Tensor,
) -> None:  # fmt: skip
    """The weight gradient [weights, O, 3C, k, k] of one set of planes, into `result`; sums are in float32.

    Args:
        plan: takes the launches.
        grad: [B, P, O, H', W'], any strides.
        x: [B, P, C, H, W], any strides.
        vectors: the sums of grad for each tap, from `tap_sums`.
        lines: the averages that the planes met, from `average`.
        weight: [weights, O, 3C, k, k], for its shape; `weights` is 1 or P.
        own: the own plane's third [weights, O, C, k, k] where the library computed it.
        step: how the kernel moved.
        result: contiguous.
    """
    from .weights.kernels import weight_finish

    count, outputs, channels, kernel = weight.shape[0], weight.shape[1], x.shape[2], weight.shape[-1]
    slots = [_own_slot(grad, x), *(_line_slot(grad, x, vectors, lines, kernel, kind) for kind in (0, 1))]
    one = count * kernel * kernel * outputs * channels
    splits = [_splits(plan, slot, x, outputs, count, kernel, step) for slot in slots]
    splits = [1 if own is not None else splits[0], *[min(splits[1:])] * 2]
    at = [0, splits[0] * one, (splits[0] + splits[1]) * one]
    partial = plan.buffer(at[2] + splits[2] * one, dtype=torch.float32)
    if own is not None:
        whole = partial[:one].view(count, kernel, kernel, outputs, channels)
        plan.call(Tensor.copy_, whole, own.permute(0, 3, 4, 1, 2))
    for line, slot in enumerate(slots):
        if line or own is None:
            _launch(plan, slot, partial[at[line] :], x, weight, splits[line], step, line)
    found = launch_rule("weight_finish", x, outputs, plan.device)
    (tile,) = found["tile"]
    plan.add(
        weight_finish, (-(-channels // tile), outputs, 3 * count),
        partial, result, at[1], at[2], splits[0], splits[1], channels, outputs,
        1 / vectors.scales[0], 1 / vectors.scales[1],
        constants={"WEIGHTS": count, "TAPS": kernel * kernel, "TAPS_PADDED": 1 << (kernel * kernel - 1).bit_length(),
                   "TILE_C": tile},
        options=launch_options(found["warps"], found["stages"]),
    )  # fmt: skip


def bias_part(
    plan: Plan, totals: Tensor, result: Tensor, outer: int, inner: int, spacing: int, plane: int
) -> None:
    """The gradient [weights, O] of biases from sums of rows [rows, O]: `outer` blocks of `inner` rows for each."""
    from .weights.kernels import bias_gradient

    found = launch_rule("bias_gradient", totals[:, None, :, None, None], totals.shape[1], plan.device)
    tile_r, tile_o = found["tile"]
    plan.add(
        bias_gradient, (-(-totals.shape[1] // tile_o), result.shape[0]), totals, result, totals.shape[1], outer, inner,
        spacing, plane, constants={"TILE_R": tile_r, "TILE_O": tile_o},
        options=launch_options(found["warps"], found["stages"]),
    )


def _own_slot(grad: Tensor, x: Tensor) -> _Slot:
    size, size_in = (grad.shape[3], grad.shape[4]), (x.shape[3], x.shape[4])
    return _Slot(grad, x, size, size_in, (*strides(grad), 0), strides(x), needs_int64(grad[0, 0], x[0, 0]))


def _line_slot(grad: Tensor, x: Tensor, vectors: Lines, lines: Lines, kernel: int, kind: int) -> _Slot:
    """The line of one kind as images of one row: the gradients are [N, k, length, O], the lines [N, length, C]."""
    planes, channels, outputs = x.shape[1], x.shape[2], grad.shape[2]
    length, length_in = grad.shape[4 - kind], x.shape[4 - kind]
    start = (vectors.columns, vectors.rows)[kind], (lines.columns, lines.rows)[kind]
    one, one_in = length * outputs, length_in * channels
    grad_strides = (planes * kernel * one, kernel * one, 0, outputs, 1, one)
    x_strides = (planes * one_in, one_in, 0, channels, 1)
    parts = vectors.buffer[start[0] :], lines.buffer[start[1] :]
    return _Slot(*parts, (1, length), (1, length_in), grad_strides, x_strides, False)


def _splits(plan: Plan, slot: _Slot, x: Tensor, outputs: int, weights: int, kernel: int, step: Step) -> int:
    """Into how many partial sums the pixels are dealt: enough programs to fill the machine, bounded in memory."""
    found = launch_rule("weight_gradient", x, outputs, plan.device)
    tile_o, tile_c, tile_p = found["tile"]
    tiles = -(-outputs // tile_o) * -(-x.shape[2] // tile_c) * kernel * kernel * weights
    walked = slot.size_in if step.transposed else slot.size
    steps = x.shape[0] * x.shape[1] // weights * -(-walked[0] * walked[1] // tile_p)
    most = _MOST_PARTIAL // (weights * kernel * kernel * outputs * x.shape[2])
    return max(1, min(-(-found["programs"] // tiles), steps, most))


def _launch(
    plan: Plan, slot: _Slot, partial: Tensor, x: Tensor, weight: Tensor, splits: int, step: Step, line: int
) -> None:
    from .weights.kernels import weight_gradient

    batch, planes, channels = x.shape[:3]
    count, outputs, kernel = weight.shape[0], weight.shape[1], weight.shape[-1]
    found = launch_rule("weight_gradient", x, outputs, plan.device)
    tile_o, tile_c, tile_p = found["tile"]
    tiles = -(-outputs // tile_o) * -(-channels // tile_c)
    plan.add(
        weight_gradient, (tiles, kernel * kernel, splits * count),
        slot.grad, slot.x, partial, batch * planes, planes, *slot.size, *slot.size_in, channels, outputs,
        step.padding, splits, *slot.grad_strides, *slot.x_strides,
        constants={"WEIGHTS": count, "KERNEL": kernel, "STRIDE": step.stride, "TRANSPOSED": step.transposed,
                   "LINE": line, "TILE_O": tile_o, "TILE_C": tile_c, "TILE_P": tile_p, "PRECISION": precision(x),
                   "WIDE": slot.wide},
        options=launch_options(found["warps"], found["stages"]),
    )  # fmt: skip
