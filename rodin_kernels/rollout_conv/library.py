"""PyTorch's own convolution and its gradients, with sums short enough to be as accurate as they can be.

oneDNN adds up all products of a pixel in channels-last memory in one chain of float32 numbers, whose rounding error
grows with the root of its length; in the order [N, C, H, W] it adds up 16 channels at a time. Chains of at most
`CHAIN` products, added up afterwards, err by 1.7 to 2.0e-7 at any number of channels, where whole ones err by 2.5e-7
with 64 channels and 5.9e-7 with 384, and [N, C, H, W] by 1.3e-7 (root mean square, 3 x 3 kernels, results of size 0.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .torch_path import Step

#: Products that are added up at once in float32 on a CPU: 48 channels of a 3 x 3 kernel.
CHAIN = 432


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, step: Step, *, line: bool = False) -> Tensor:
    """The plain convolution of x [N, C, H, W] with a weight [O, C, ., .]; on a `line`, H is 1 and stays 1."""
    kernel, *sizes, outputs = _arguments(weight, step, line)
    options = (*sizes, [1, 1], step.transposed, outputs, 1)
    result: Tensor | None = None
    for part in _parts(x, weight.shape[1], weight):
        own = kernel[part] if step.transposed else kernel[:, part]
        if result is None:
            result = torch.ops.aten.convolution(x[:, part], own, bias, *options)
        else:
            result.add_(torch.ops.aten.convolution(x[:, part], own, None, *options))
    assert result is not None
    return result


def convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, step: Step, mask: tuple[bool, bool], *, line: bool = False
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight of `convolve`, those that `mask` names."""
    kernel, *sizes, outputs = _arguments(weight, step, line)
    options = (None, *sizes, [1, 1], step.transposed, outputs, 1)
    parts = _parts(x, weight.shape[0], weight) if mask[0] else [slice(None)]
    whole = [mask[0] and len(parts) == 1, mask[1], False]
    grad_x = grad_weight = None
    if any(whole):
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(grad, x, kernel, *options, whole)
    for part in parts if len(parts) > 1 else ():
        own = kernel[:, part] if step.transposed else kernel[part]
        found, _, _ = torch.ops.aten.convolution_backward(grad[:, part], x, own, *options, [True, False, False])
        grad_x = found if grad_x is None else grad_x.add_(found)
    if step.transposed and grad_weight is not None:
        grad_weight = grad_weight.transpose(0, 1)
    nothing = x.new_empty(0)
    return nothing if grad_x is None else grad_x, nothing if grad_weight is None else grad_weight


def _parts(x: Tensor, channels: int, weight: Tensor) -> Sequence[slice]:
    """Ranges of the channels that are added up, whose products with a pixel's taps are at most `CHAIN` in number."""
    products = channels * weight.shape[2] * weight.shape[3]
    if x.dtype != torch.float32 or x.is_cuda or products <= CHAIN:
        return [slice(None)]
    # whole vectors of 16 channels, as even as they come
    width = -(-channels // -(-products // CHAIN) // 16) * 16
    return [slice(first, first + width) for first in range(0, channels, width)]


def _arguments(weight: Tensor, step: Step, line: bool) -> tuple[Tensor, list[int], list[int], list[int]]:
    """Kernel, strides, paddings and output paddings as torch wants them: its transposed kernels are [C, O, ., .]."""
    output_padding = step.stride - 1 if step.transposed else 0
    return (
        weight.transpose(0, 1) if step.transposed else weight,
        [1 if line else step.stride, step.stride],
        [0 if line else step.padding, step.padding],
        [0 if line else output_padding, output_padding],
    )
