"""The 3D-aware convolution as PyTorch operators: `rodin::rollout_conv` and its backward, each differentiable again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..launch import device_guard, exact_float32
from . import torch_path, triton_path
from .torch_path import Step


@torch.library.custom_op("rodin::rollout_conv", mutates_args=())
def forward(
    planes: Sequence[Tensor], weight: Tensor, bias: Tensor | None, layout: str, stride: int, padding: int,
    transposed: bool, method: str,
) -> list[Tensor]:  # fmt: skip
    """`rollout_conv` on checked arguments: one stacked tensor or three in, as many out; layout as "xy zx yz".

    method is "torch", or for the Triton kernels one of `choice.METHODS`.
    """
    step = Step(stride, padding, transposed)
    if planes[0].numel() == 0:
        return _empty_results(planes, weight, step)
    with _without_autocast(weight), device_guard(weight), exact_float32(weight):
        if _by_kernels(method, weight):
            return triton_path.forward(planes, weight, bias, layout.split(), step, method)
        return torch_path.forward(planes, weight, bias, layout.split(), step)


@forward.register_fake
def _(
    planes: Sequence[Tensor], weight: Tensor, bias: Tensor | None, layout: str, stride: int, padding: int,
    transposed: bool, method: str,
) -> list[Tensor]:  # fmt: skip
    return _empty_results(planes, weight, Step(stride, padding, transposed))


@torch.library.custom_op("rodin::rollout_conv_backward", mutates_args=())
def backward(
    grads: Sequence[Tensor], planes: Sequence[Tensor], weight: Tensor, layout: str, stride: int, padding: int,
    transposed: bool, method: str, need_planes: bool, need_weight: bool, need_bias: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of planes (as many tensors as came in), weight and bias, in this order, those that are needed."""
    needs = (need_planes, need_weight, need_bias)
    if planes[0].numel() == 0:
        return [gradient.zero_() for gradient in _empty_gradients(planes, weight, needs)]
    step = Step(stride, padding, transposed)
    with _without_autocast(weight), device_guard(weight), exact_float32(weight):
        if _by_kernels(method, weight):
            return triton_path.backward(grads, planes, weight, layout.split(), step, needs, method)
        return torch_path.backward(grads, planes, weight, layout.split(), step, needs)


@backward.register_fake
def _(
    grads: Sequence[Tensor], planes: Sequence[Tensor], weight: Tensor, layout: str, stride: int, padding: int,
    transposed: bool, method: str, need_planes: bool, need_weight: bool, need_bias: bool,
) -> list[Tensor]:  # fmt: skip
    return _empty_gradients(planes, weight, (need_planes, need_weight, need_bias))


def _by_kernels(method: str, tensor: Tensor) -> bool:
    """Whether the Triton kernels run; they leave float64 to the torch path."""
    return method != "torch" and tensor.dtype != torch.float64


def _without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """The arguments have their final dtype already; PyTorch's own operators must not cast them again."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _empty_channels_last(*shape: int, like: Tensor) -> Tensor:
    """An uninitialised tensor [..., C, H, W] that lies in memory as [..., H, W, C]."""
    *lead, channels, height, width = shape
    return like.new_empty(*lead, height, width, channels).movedim(-1, -3)


def _empty_results(planes: Sequence[Tensor], weight: Tensor, step: Step) -> list[Tensor]:
    kernel, channels = weight.shape[-1], weight.shape[-4]
    return [
        _empty_channels_last(
            *plane.shape[:-3], channels, *(step.output_size(size, kernel) for size in plane.shape[-2:]), like=plane
        )
        for plane in planes
    ]


def _empty_gradients(planes: Sequence[Tensor], weight: Tensor, needs: tuple[bool, bool, bool]) -> list[Tensor]:
    need_planes, need_weight, need_bias = needs
    results = [_empty_channels_last(*plane.shape, like=plane) for plane in planes] if need_planes else []
    results += [weight.new_empty(weight.shape)] if need_weight else []
    return results + ([weight.new_empty(weight.shape[:-3])] if need_bias else [])


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    planes, weight, _, *ctx.options = inputs
    ctx.save_for_backward(*planes, weight)


def _differentiate_forward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    *planes, weight = ctx.saved_tensors
    needs = (any(ctx.needs_input_grad[0]), *ctx.needs_input_grad[1:3])
    results = backward(grads, planes, weight, *ctx.options, *needs)
    grad_planes = [results.pop(0) for _ in planes] if needs[0] else [None] * len(planes)
    grad_weight = results.pop(0) if needs[1] else None
    return grad_planes, grad_weight, results.pop(0) if needs[2] else None, *[None] * 5


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grads, planes, weight, *options = inputs
    ctx.options, ctx.needs = options[:5], options[5:]
    ctx.save_for_backward(*grads, *planes, weight)


def _differentiate_backward(ctx: Any, cotangents: list[Tensor]) -> tuple[Any, ...]:
    """Second derivatives from the same two operators, because the convolution is linear in planes and in weight.

    With the cotangents a of the planes' gradient, c of the weight's and d of the bias's, they are the derivatives of
    <grads, conv(a, weight) + conv(planes, c) + d>.
    """
    *tensors, weight = ctx.saved_tensors
    count = len(tensors) // 2
    grads, planes, left = tensors[:count], tensors[count:], list(cotangents)
    need_planes, need_weight, need_bias = ctx.needs
    a = [left.pop(0) for _ in planes] if need_planes else None
    c = left.pop(0) if need_weight else torch.zeros_like(weight)
    d = left.pop(0) if need_bias else None
    grad_grads: list[Any] = [None] * count
    grad_planes, grad_weight = grad_grads, None
    if any(ctx.needs_input_grad[0]):
        grad_grads = forward(planes, c, d, *ctx.options)
        if a is not None:
            grad_grads = [x + y for x, y in zip(grad_grads, forward(a, weight, None, *ctx.options), strict=True)]
    if any(ctx.needs_input_grad[1]) and need_weight:
        grad_planes = backward(grads, planes, c, *ctx.options, True, False, False)
    if ctx.needs_input_grad[2] and a is not None:
        (grad_weight,) = backward(grads, a, weight, *ctx.options, False, True, False)
    return grad_grads, grad_planes, grad_weight, *[None] * 8


forward.register_autograd(_differentiate_forward, setup_context=_save_forward)
backward.register_autograd(_differentiate_backward, setup_context=_save_backward)
