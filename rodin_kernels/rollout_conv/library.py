"""PyTorch's own convolution and its gradients, with sums short enough to be as accurate as they can be.

oneDNN adds up all products of a pixel in channels-last memory in one chain of float32 numbers, whose rounding error
grows with the root of its length; in the order [N, C, H, W], with AVX-512, it adds up 16 channels at a time. Chains of
at most `CHAIN` products, added up afterwards, err by 1.7 to 2.0e-7 at any number of channels, where whole ones err by
2.5e-7 with 64 channels and 5.9e-7 with 384, and [N, C, H, W] by 1.3e-7 (root mean square, 3 x 3 kernels, results of
size 0.6). One whole chain for 64 channels would save a seventh of the forward, but its largest error is 2.6 times that
of [N, C, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .torch_path import Step

# oneDNN's weight gradient for AVX2 reads channels-last memory against its cache: turned first, it takes 0.4 to 0.8 of
# the time, the turning included
_TURNS = torch.backends.cpu.get_cpu_capability() == "AVX2"

#: Products that are added up at once in float32 on a CPU: 48 channels of a 3 x 3 kernel.
CHAIN = 432


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, step: Step) -> Tensor:
    """The plain convolution of x [N, C, H, W] with a weight [O, C, k, k]."""
    kernel, *sizes, outputs = _arguments(weight, step)
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
    grad: Tensor, x: Tensor, weight: Tensor, step: Step, mask: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight of `convolve`, those that `mask` names (else empty)."""
    kernel, *sizes, outputs = _arguments(weight, step)
    options = (None, *sizes, [1, 1], step.transposed, outputs, 1)
    nothing = x.new_empty(0)
    grad_weight = _weight_gradient(grad, x, kernel, options) if mask[1] else nothing
    if step.transposed and mask[1]:
        grad_weight = grad_weight.transpose(0, 1)
    grad_x: Tensor | None = None
    for part in _parts(x, weight.shape[0], weight) if mask[0] else ():
        own = kernel[:, part] if step.transposed else kernel[part]
        found, _, _ = torch.ops.aten.convolution_backward(grad[:, part], x, own, *options, [True, False, False])
        grad_x = found if grad_x is None else grad_x.add_(found)
    return nothing if grad_x is None else grad_x, grad_weight


def _weight_gradient(grad: Tensor, x: Tensor, kernel: Tensor, options: tuple[Any, ...]) -> Tensor:
    """The gradient of the kernel as torch stores it, by a third of the images at a time."""
    result: Tensor | None = None
    for images in _thirds(x):
        pair = grad[images], x[images]
        if _TURNS and not x.is_cuda:
            pair = pair[0].contiguous(), pair[1].contiguous()
        _, found, _ = torch.ops.aten.convolution_backward(*pair, kernel, *options, [False, True, False])
        result = found if result is None else result.add_(found)
    assert result is not None
    return result


def _thirds(x: Tensor) -> Sequence[slice]:
    """Ranges of the images whose weight gradients are added up: in float32 three, as many as planes.

    Sums over the pixels of all planes at once err more than those of plane after plane.
    """
    if x.dtype != torch.float32 or len(x) % 3:
        return [slice(None)]
    return [slice(first, first + len(x) // 3) for first in range(0, len(x), len(x) // 3)]


def _parts(x: Tensor, channels: int, weight: Tensor) -> Sequence[slice]:
    """Ranges of the channels that are added up, whose products with a pixel's taps are at most `CHAIN` in number."""
    products = channels * weight.shape[2] * weight.shape[3]
    if x.dtype != torch.float32 or x.is_cuda or products <= CHAIN:
        return [slice(None)]
    # whole vectors of 16 channels, as even as they come
    width = -(-channels // -(-products // CHAIN) // 16) * 16
    return [slice(first, first + width) for first in range(0, channels, width)]


def _arguments(weight: Tensor, step: Step) -> tuple[Tensor, list[int], list[int], list[int]]:
    """Kernel, strides, paddings and output paddings as torch wants them: its transposed kernels are [C, O, k, k]."""
    output_padding = step.stride - 1 if step.transposed else 0
    kernel = weight.transpose(0, 1) if step.transposed else weight
    return kernel, [step.stride] * 2, [step.padding] * 2, [output_padding] * 2
