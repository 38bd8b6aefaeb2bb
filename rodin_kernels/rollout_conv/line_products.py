"""The line convolutions of the collapse as matrix products, which for so few and so long sums is a CPU's fastest form.

A line [N, L, C] unfolds to what each output position reads, [N L', k C] with zeros for padding, and meets both axes of
the kernel at once: all k vectors of a line come out of one product. Products of matrices are summed in blocks, so they
are as accurate at any number of channels. Everything is computed in at least float32, rounded once at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .torch_path import Step


@lru_cache(maxsize=1024)
def tap_reads(size: int, kernel: int, step: Step) -> tuple[tuple[slice, slice], ...]:
    """For each tap the output positions of an axis of `size` elements at which it reads, and what it reads there.

    Two slices of the same length; both are empty if the tap reads padding everywhere.
    """
    found = []
    for tap in range(kernel):
        shift = tap - step.padding
        # walked by one: output positions, or what a transposed convolution spreads over them
        walked, reached = step.output_size(size, kernel), size
        if step.transposed:
            walked, reached = reached, walked
        first = max(0, -(shift // step.stride))
        last = min(walked - 1, (reached - 1 - shift) // step.stride)
        count, start = max(0, last + 1 - first), first * step.stride + shift
        pair = slice(first, first + count), slice(start, start + count * step.stride, step.stride)
        if not count:
            pair = slice(0, 0), slice(0, 0)
        found.append((pair[1], pair[0]) if step.transposed else pair)
    return tuple(found)


def line_vectors(line: Tensor, slot: Tensor, across: int, step: Step) -> Tensor:
    """One vector for each tap across the line: [N, L, C] and the weight's slot [O, C, k, k] to [N, L', k, O].

    `across` is the slot's dimension along which the line is replicated, 2 (rows) for a line along the columns, else 3.
    """
    images, kernel = line.shape[0], slot.shape[-1]
    unfolded = _unfolded(line, kernel, step)
    return (unfolded @ _matrix(slot, across, line.dtype).t()).view(images, -1, kernel, slot.shape[0])


def line_gradients(
    grad: Tensor, line: Tensor, slot: Tensor, across: int, step: Step, mask: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of line [N, L, C] and slot [O, C, k, k] of `line_vectors`, those that `mask` names (else empty)."""
    images, size, channels = line.shape
    kernel, rows = slot.shape[-1], grad.flatten(2).flatten(0, 1)
    grad_line = grad_slot = line.new_empty(0)
    if mask[0]:
        reads = (rows @ _matrix(slot, across, line.dtype)).view(images, -1, kernel, channels)
        grad_line = torch.zeros_like(line)
        for tap, (positions, elements) in enumerate(tap_reads(size, kernel, step)):
            grad_line[:, elements] += reads[:, positions, tap]
    if mask[1]:
        product = (rows.t() @ _unfolded(line, kernel, step)).view(kernel, -1, kernel, channels)
        # [across, O, along, C]
        grad_slot = product.permute(1, 3, 0, 2) if across == 2 else product.permute(1, 3, 2, 0)
    return grad_line, grad_slot


def _unfolded(line: Tensor, kernel: int, step: Step) -> Tensor:
    """[N, L, C] -> [N L', k C]: what the taps read at each output position."""
    images, size, channels = line.shape
    result = line.new_zeros(images, step.output_size(size, kernel), kernel, channels)
    for tap, (positions, elements) in enumerate(tap_reads(size, kernel, step)):
        result[:, positions, tap] = line[:, elements]
    return result.flatten(2).flatten(0, 1)


def _matrix(slot: Tensor, across: int, dtype: torch.dtype) -> Tensor:
    """[O, C, k, k] -> [k O, k C]: taps across the line with the outputs, taps along it with the channels."""
    turned = slot.permute(2, 0, 3, 1) if across == 2 else slot.permute(3, 0, 2, 1)
    return turned.to(dtype).flatten(2).flatten(0, 1)
