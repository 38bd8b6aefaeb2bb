"""The public function of the 3D-aware convolution: argument checks and choice of backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from ..checks import check_flag, check_integer, check_same_device, check_same_dtype, check_shape, check_tensor
from ..launch import resolve_backend
from ..layouts import RODIN, cross_sources, plane_axes
from . import quick
from .choice import forced_method
from .reference import rollout_conv_reference
from .registered import forward
from .torch_path import Step


@overload
def rollout_conv(
    planes: Tensor, weight: Tensor, bias: Tensor | None = None, *, layout: Sequence[str] = RODIN, stride: int = 1,
    padding: int = 1, transposed: bool = False, backend: str = "auto",
) -> Tensor: ...  # fmt: skip
@overload
def rollout_conv(
    planes: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None, *, layout: Sequence[str] = RODIN,
    stride: int = 1, padding: int = 1, transposed: bool = False, backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]: ...  # fmt: skip
def rollout_conv(
    planes: Tensor | Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    layout: Sequence[str] = RODIN,
    stride: int = 1,
    padding: int = 1,
    transposed: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """The 3D-aware convolution: every plane convolved together with what the other two know about its two axes.

        y_p = conv2d([x_p, l, m]; weight_p) + bias_p

    l is the line along p's columns, replicated down the rows, m the line along its rows, replicated across the columns:
    means of the other two planes over the axis that p does not show (Rodin, section 3.2). The 3C-channel input is never
    built: the lines' two thirds collapse, exactly, into line convolutions, 3 / (1 + 2 / R) times fewer operations.

    Args:
        planes: [B, 3, C, R, R], any strides, any range; or three tensors [B, C, H_p, W_p] whose sizes agree on the
            length of each axis. Where the channels of a pixel lie together, as in channels-last memory and in what
            `unroll` makes of a channels-last picture [B, C, R, 3R], the Triton kernels read them in place. Others are
            copied to that order once for each pass: 2 transfers of the planes, where reading them scattered k^2 times
            would cost more.
        weight: [O, 3C, k, k] shared by the planes, or [3, O, 3C, k, k], one for each; the 3C slots are [own plane, line
            along the columns, line along the rows]. The same order when `transposed`.
        bias: [O] with a shared weight, [3, O] with one for each plane.
        layout: the axes that each plane shows, all three pairs of axes once, in any order and orientation.
        stride: step of the kernel, at least 1.
        padding: zeros at each border, at least 0.
        transposed: the transposed convolution with output padding stride - 1, so that kernel 3, stride 2, padding 1
            doubles the size.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        [B, 3, O, R', R'] in channels-last memory (the reference follows torch.conv2d's choice); or a tuple of three
        [B, O, H'_p, W'_p]. R' = floor((R + 2 padding - k) / stride) + 1, transposed (R - 1) stride - 2 padding + k +
        stride - 1.

    Differentiable in planes, weight and bias, any number of times; saves planes and weight for the backward, the Triton
    kernels the lines as well, 2 / R of the planes. Takes float16, bfloat16, float32 and float64, one for all arguments;
    inside torch.autocast the arguments are cast to its dtype. Sums are accumulated in at least float32. What depends on
    shapes alone, from checks to launch parameters, is worked out at the first call with them and remembered.

    Raises:
        TypeError: an argument is no tensor, not floating, or of another dtype than the rest.
        ValueError: a shape, size or device does not fit, or the layout lacks a pair of axes (as EG3D does).
        RuntimeError: `backend="triton"` cannot run here.
    """
    if not torch.compiler.is_compiling():
        found = quick.find(planes, weight, bias, layout, stride, padding, transposed, backend)
        if found is not None:
            known, parts, weight, bias = found
            return known(parts, weight, bias)
    stacked = isinstance(planes, Tensor)
    step = Step(
        check_integer("stride", stride, least=1),
        check_integer("padding", padding, least=0),
        check_flag("transposed", transposed),
    )
    parts = _checked_planes(planes, layout)
    _check_weight(parts, stacked, weight, bias, step)
    parts, weight, bias = _autocast(parts, weight, bias)
    check_same_device(planes=parts[0], weight=weight, bias=bias)
    check_same_dtype(planes=parts[0], weight=weight, bias=bias)
    chosen = resolve_backend("rollout_conv", backend, *parts, weight)
    if chosen == "reference":
        whole = parts[0] if stacked else parts
        return rollout_conv_reference(
            whole, weight, bias, layout=layout, stride=stride, padding=padding, transposed=transposed
        )
    method = forced_method() if chosen == "triton" else "torch"
    if chosen == "triton" and not torch.compiler.is_compiling():
        quick.learn(parts, weight, bias, layout, step, backend, stacked)
    results = forward(parts, weight, bias, " ".join(layout), *step, method)
    return results[0] if stacked else (results[0], results[1], results[2])


def _checked_planes(planes: Tensor | Sequence[Tensor], layout: Sequence[str]) -> list[Tensor]:
    """One stacked tensor or three, in a list, after checks of their shapes against each other and the layout."""
    cross_sources(layout)
    if isinstance(planes, Tensor):
        check_tensor("planes", planes, ndim=5)
        check_shape("planes", planes, (None, 3, None, None, None), "[B, 3, C, R, R]")
        if planes.shape[3] != planes.shape[4]:
            raise ValueError(
                "planes [B, 3, C, H, W] must be square, since their axes run along the rows of some and the columns of "
                f"others; got {list(planes.shape)}. Pass three tensors [B, C, H, W] for axes of different lengths"
            )
        return [planes]
    if not isinstance(planes, Sequence) or len(planes) != 3:
        raise TypeError(f"planes must be a tensor [B, 3, C, R, R] or three tensors; got {_describe(planes)}")
    for index, plane in enumerate(planes):
        check_tensor(f"planes[{index}]", plane, ndim=4)
        check_shape(f"planes[{index}]", plane, (*planes[0].shape[:2], None, None), "[B, C, H, W] as planes[0]")
    check_same_dtype(**{f"planes[{index}]": plane for index, plane in enumerate(planes)})
    check_same_device(**{f"planes[{index}]": plane for index, plane in enumerate(planes)})
    lengths: dict[int, int] = {}
    for plane, (column, row), name in zip(planes, plane_axes(layout), layout, strict=True):
        for axis, size in ((column, plane.shape[3]), (row, plane.shape[2])):
            if lengths.setdefault(axis, size) != size:
                raise ValueError(
                    f"planes must agree on the length of each axis; {'xyz'[axis]} has {lengths[axis]} elements in one "
                    f"and {size} in plane {name!r} (columns, then rows, in {tuple(layout)})"
                )
    return list(planes)


def _check_weight(parts: list[Tensor], stacked: bool, weight: Tensor, bias: Tensor | None, step: Step) -> None:
    """Weight and bias fit the planes, and the kernel fits into them."""
    channels = parts[0].shape[-3]
    check_tensor("weight", weight)
    wanted = "[O, 3C, k, k] or [3, O, 3C, k, k]"
    if weight.ndim not in (4, 5) or (weight.ndim == 5 and weight.shape[0] != 3) or weight.shape[-1] != weight.shape[-2]:
        raise ValueError(f"weight must be {wanted}; got {list(weight.shape)}")
    if weight.shape[-3] != 3 * channels or 0 in weight.shape:
        raise ValueError(f"weight must be {wanted} with 3C = {3 * channels}; got {list(weight.shape)}")
    if bias is not None:
        check_tensor("bias", bias)
        check_shape("bias", bias, weight.shape[:-3])
    for part in parts:
        for size in part.shape[-2:]:
            if size < 1 or step.output_size(size, weight.shape[-1]) < 1:
                raise ValueError(
                    f"planes of size {list(part.shape[-2:])} are too small for a kernel of {weight.shape[-1]} with "
                    f"stride {step.stride} and padding {step.padding}: nothing would be left"
                )


def _describe(value: Any) -> str:
    """What came instead, in words."""
    return f"{len(value)} of them" if isinstance(value, Sequence) else type(value).__name__


def _autocast(
    parts: list[Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """The arguments in autocast's dtype where it is on; as PyTorch's own operators do, float64 is left alone."""
    device = weight.device.type
    # the meta device has no autocast to ask about; `is_autocast_available` would tell, but torch 2.11 cannot compile it
    if device == "meta" or not torch.is_autocast_enabled(device) or weight.dtype == torch.float64:
        return parts, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return [part.to(dtype) for part in parts], weight.to(dtype), None if bias is None else bias.to(dtype)
