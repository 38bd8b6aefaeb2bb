"""Tri-plane sampling: the public function, and the registration of its operators with PyTorch.

`sample`, `plane_gradient` and `point_gradient` are each other's derivatives (see torch_path.py), so that two orders of
differentiation never leave them. `product` multiplies the planes' features before they reach memory; its derivatives
are made of those three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks, launch
from ..layouts import RODIN, plane_axes
from . import torch_path
from .reference import reduce_features, sample_triplane_reference

#: The choices of the public function.
REDUCTIONS = ("sum", "mean", "concat", "product")
PADDING_MODES = ("zeros", "border", "reflection")
MODES = ("bilinear", "nearest")


def sample_triplane(
    planes: Tensor | Sequence[Tensor],
    points: Tensor,
    *,
    layout: Sequence[str] = RODIN,
    reduce: str = "sum",
    align_corners: bool = False,
    padding_mode: str = "zeros",
    mode: str = "bilinear",
    backend: str = "auto",
) -> Tensor:
    """Features of points in space, read bilinearly from three axis-aligned planes.

        f(p) = reduce over planes P of  sum over the 4 texels (i, j) around p of  w_i(p[col P]) w_j(p[row P]) P[j, i]

    Each plane is read as `torch.nn.functional.grid_sample` reads it, points that are not finite included (except, by
    reflection, very far ones: there it differs from device to device). A plane of
    16 × 16 texels whose features are their column number gives, with align_corners=False, 7.5 at coordinate 0.

    Args:
        planes: [B, 3, C, H, W] with any strides, or a sequence of three [B, C, H_i, W_i] of different sizes. Stored
            channels-last (stride of C = 1) they are read in place, else copied once. A batch of 1 serves all points,
            and so do planes expanded over the batch; with 1 the gradient stays one set of planes as well.
        points: [B, N, 3] coordinates x, y, z in [-1, 1], beyond which `padding_mode` rules.
        layout: the planes' names: first letter the axis along the columns, second along the rows. Pairs may repeat.
        reduce: "sum", "mean", "product" over the planes, or "concat": plane by plane along the channels.
        align_corners: whether -1 and 1 are the centres (True) or the outer edges (False) of the outer texels.
        padding_mode: "zeros", "border" or "reflection" outside. Reflection reaches 2^22 widths of a plane far; beyond,
            and where a coordinate is not a number, texel 0 is read.
        mode: "bilinear" or "nearest" (ties to even; no gradient to the points).
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        [B, N, C], or [B, N, 3C] for "concat", contiguous, in the planes' dtype.

    Differentiable in planes and points, twice (any order with backend="reference"). float16, bfloat16 and float32 are
    computed and accumulated in float32, float64 in float64; the planes' gradient has the planes' dtype and is stored
    channels-last. The same inputs give the same bits on a CPU, and by Triton's kernels under
    `torch.use_deterministic_algorithms(True)`; without it those add the planes' gradient in any order.

    Raises:
        TypeError: an argument is no tensor, or not of a floating type.
        ValueError: shapes, devices or dtypes do not go together, or a choice is unknown.
        RuntimeError: the backend cannot run here.
    """
    given = _check(planes, points, reduce, align_corners, padding_mode, mode)
    axes = [axis for pair in plane_axes(layout) for axis in pair]
    backend = launch.resolve_backend("sample_triplane", backend, *given, points)
    if backend == "reference":
        return sample_triplane_reference(planes, points, layout=layout, reduce=reduce, align_corners=align_corners,
                                         padding_mode=padding_mode, mode=mode)
    options = (align_corners, padding_mode, mode, backend, 3 if reduce == "mean" else 1)
    if backend == "triton":
        given = [_read_in_place(plane) for plane in given]
    wide = torch_path.compute_dtype(given[0].dtype, points.dtype)
    if len(given) == 3:
        features = [_sample(plane[:, None], points, None, axes[2 * i:2 * i + 2], False, *options, wide)
                    for i, plane in enumerate(given)]
        # the operators have divided already
        return reduce_features(features, "sum" if reduce == "mean" else reduce).to(given[0].dtype)
    if reduce == "product" and backend == "triton":
        return _product(given[0], points, axes, *options, given[0].dtype)
    if reduce == "product":
        features = list(_sample(given[0], points, None, axes, True, *options, wide).unbind(2))
        return reduce_features(features, reduce).to(given[0].dtype)
    features = _sample(given[0], points, None, axes, reduce == "concat", *options, given[0].dtype)
    return features.flatten(2)


def _read_in_place(planes: Tensor) -> Tensor:
    """The planes [B, ..., C, H, W] channels-last: converted outside the operators, so that all of them share one copy.

    Planes expanded over the batch stay as they are: the operators copy one set of them, and every entry of the batch
    keeps a gradient of its own.
    """
    if planes.stride(0) == 0 and planes.shape[0] > 1:
        return planes
    return torch_path.channels_last(planes if planes.ndim == 5 else planes[:, None]).view(planes.shape)


def _check(planes: Any, points: Any, reduce: str, align_corners: bool, padding_mode: str, mode: str) -> list[Tensor]:
    """The tensors that `planes` consists of, after a check that all arguments fit together."""
    if isinstance(planes, Tensor):
        checks.check_tensor("planes", planes, ndim=5)
        checks.check_shape("planes", planes, (None, 3, None, None, None), "[B, 3, C, H, W]")
        given = {"planes": planes}
    else:
        if not isinstance(planes, list | tuple) or len(planes) != 3:
            came = f"{len(planes)} of them" if isinstance(planes, list | tuple) else type(planes).__name__
            raise TypeError(f"planes must be a tensor [B, 3, C, H, W] or three tensors [B, C, H, W]; got {came}")
        given = {f"planes[{i}]": checks.check_tensor(f"planes[{i}]", p, ndim=4) for i, p in enumerate(planes)}
        checks.check_same_dtype(**given)
        if len({plane.shape[1] for plane in planes}) > 1:
            raise ValueError(f"planes must have the same channels; got {[list(plane.shape) for plane in planes]}")
    checks.check_tensor("points", points, ndim=3)
    checks.check_shape("points", points, (None, None, 3), "[B, N, 3]")
    checks.check_same_device(**given, points=points)
    for name, plane in given.items():
        if 0 in plane.shape[-3:]:
            raise ValueError(f"{name} must have at least one channel, row and column; got {list(plane.shape)}")
        if plane.shape[0] not in (1, points.shape[0]):
            raise ValueError(
                f"{name} must have the batch size of points ({points.shape[0]}) or 1; got {plane.shape[0]}"
            )
    checks.check_choice("reduce", reduce, REDUCTIONS)
    checks.check_flag("align_corners", align_corners)
    checks.check_choice("padding_mode", padding_mode, PADDING_MODES)
    checks.check_choice("mode", mode, MODES)
    return list(given.values())


def _scheme(axes: Sequence[int], align_corners: bool, padding_mode: str, mode: str, height: int,
            width: int) -> torch_path.Scheme:
    return torch_path.Scheme(tuple(axes), align_corners, padding_mode, mode, height, width)


@torch.library.custom_op("rodin_kernels::sample_triplane", mutates_args=())
def _sample(planes: Tensor, points: Tensor, tangent: Tensor | None, axes: Sequence[int], separate: bool,
            align_corners: bool, padding_mode: str, mode: str, backend: str, divisor: int,
            dtype: torch.dtype) -> Tensor:
    scheme = _scheme(axes, align_corners, padding_mode, mode, *planes.shape[-2:])
    if backend == "triton":
        from . import triton_path

        how = "separate" if separate else "sum"
        return triton_path.sample(planes, points, tangent, scheme, how, dtype, divisor)
    total = torch_path.sample(planes, points, tangent, scheme, separate)
    return (total if divisor == 1 else total / divisor).to(dtype)


@torch.library.custom_op("rodin_kernels::sample_triplane_plane_gradient", mutates_args=())
def _plane_gradient(grad: Tensor, points: Tensor, tangent: Tensor | None, axes: Sequence[int], separate: bool,
                    align_corners: bool, padding_mode: str, mode: str, backend: str, divisor: int, batch: int,
                    height: int, width: int, dtype: torch.dtype) -> Tensor:
    scheme = _scheme(axes, align_corners, padding_mode, mode, height, width)
    if backend == "triton":
        from . import triton_path

        return triton_path.plane_gradient(grad, points, tangent, scheme, separate, batch, divisor).to(dtype)
    grad = _divided(grad, points, divisor)
    return torch_path.plane_gradient(grad, points, tangent, scheme, separate, batch).to(dtype)


@torch.library.custom_op("rodin_kernels::sample_triplane_point_gradient", mutates_args=())
def _point_gradient(grad: Tensor, planes: Tensor, points: Tensor, tangent: Tensor | None, axes: Sequence[int],
                    separate: bool, align_corners: bool, padding_mode: str, mode: str, backend: str,
                    divisor: int) -> Tensor:
    scheme = _scheme(axes, align_corners, padding_mode, mode, *planes.shape[-2:])
    if backend == "triton":
        from . import triton_path

        return triton_path.point_gradient(grad, planes, points, tangent, scheme, separate, divisor)
    grad = _divided(grad, points, divisor)
    return torch_path.point_gradient(grad, planes, points, tangent, scheme, separate).to(points.dtype)


@torch.library.custom_op("rodin_kernels::sample_triplane_product", mutates_args=())
def _product(planes: Tensor, points: Tensor, axes: Sequence[int], align_corners: bool, padding_mode: str, mode: str,
             backend: str, divisor: int, dtype: torch.dtype) -> Tensor:
    from . import triton_path

    scheme = _scheme(axes, align_corners, padding_mode, mode, *planes.shape[-2:])
    return triton_path.sample(planes, points, None, scheme, "product", dtype, divisor)


def _divided(grad: Tensor, points: Tensor, divisor: int) -> Tensor:
    return grad if divisor == 1 else grad.to(torch_path.compute_dtype(grad.dtype, points.dtype)) / divisor


@_sample.register_fake
def _(planes: Tensor, points: Tensor, tangent: Tensor | None, axes: Sequence[int], separate: bool, align_corners: bool,
      padding_mode: str, mode: str, backend: str, divisor: int, dtype: torch.dtype) -> Tensor:
    shape = (*points.shape[:2], *((len(axes) // 2,) if separate else ()), planes.shape[2])
    return planes.new_empty(shape, dtype=dtype)


@_product.register_fake
def _(planes: Tensor, points: Tensor, axes: Sequence[int], align_corners: bool, padding_mode: str, mode: str,
      backend: str, divisor: int, dtype: torch.dtype) -> Tensor:
    return planes.new_empty((*points.shape[:2], planes.shape[2]), dtype=dtype)


@_plane_gradient.register_fake
def _(grad: Tensor, points: Tensor, tangent: Tensor | None, axes: Sequence[int], separate: bool, align_corners: bool,
      padding_mode: str, mode: str, backend: str, divisor: int, batch: int, height: int, width: int,
      dtype: torch.dtype) -> Tensor:
    shape = (batch, len(axes) // 2, height, width, grad.shape[-1])
    return grad.new_empty(shape, dtype=dtype).permute(0, 1, 4, 2, 3)


@_point_gradient.register_fake
def _(grad: Tensor, planes: Tensor, points: Tensor, *_: Any) -> Tensor:
    return points.new_empty(points.shape)


def _sample_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    planes, points, tangent, *options = inputs
    ctx.options = options[:-1]
    ctx.save_for_backward(planes, points, tangent)


def _sample_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    planes, points, tangent = ctx.saved_tensors
    needs, options = ctx.needs_input_grad, ctx.options
    like = (planes.shape[0], *planes.shape[-2:], planes.dtype)
    to_planes = _plane_gradient(grad, points, tangent, *options, *like) if needs[0] else None
    to_points = _point_gradient(grad, planes, points, tangent, *options) if needs[1] else None
    to_tangent = _point_gradient(grad, planes, points, None, *options) if needs[2] else None
    return (to_planes, to_points, to_tangent, *[None] * (len(options) + 1))


def _product_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    planes, points, ctx.axes, *options = inputs
    ctx.options = options[:-1]
    ctx.save_for_backward(planes, points)


def _product_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    planes, points = ctx.saved_tensors
    needs, options = ctx.needs_input_grad, (ctx.axes, True, *ctx.options)
    wide = torch_path.compute_dtype(planes.dtype, points.dtype)
    # read again instead of kept: three times the output, in float32
    a, b, c = _sample(planes, points, None, *options, wide).unbind(2)
    apart = torch.stack([b * c, a * c, a * b], 2) * grad.to(wide).unsqueeze(2)
    like = (planes.shape[0], *planes.shape[-2:], planes.dtype)
    to_planes = _plane_gradient(apart, points, None, *options, *like) if needs[0] else None
    to_points = _point_gradient(apart, planes, points, None, *options) if needs[1] else None
    return (to_planes, to_points, *[None] * (len(ctx.options) + 2))


def _plane_gradient_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, points, tangent, *options = inputs
    ctx.options = options[:-4]
    ctx.save_for_backward(grad, points, tangent)


def _plane_gradient_backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
    grad, points, tangent = ctx.saved_tensors
    needs, options = ctx.needs_input_grad, ctx.options
    to_grad = _sample(outer, points, tangent, *options, grad.dtype) if needs[0] else None
    to_points = _point_gradient(grad, outer, points, tangent, *options) if needs[1] else None
    to_tangent = _point_gradient(grad, outer, points, None, *options) if needs[2] else None
    return (to_grad, to_points, to_tangent, *[None] * (len(options) + 4))


def _point_gradient_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, planes, points, tangent, *ctx.options = inputs
    ctx.save_for_backward(grad, planes, points, tangent)


def _point_gradient_backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
    grad, planes, points, tangent = ctx.saved_tensors
    if tangent is not None:
        raise RuntimeError("sample_triplane: third derivatives need backend='reference'")
    needs, options = ctx.needs_input_grad, ctx.options
    like = (planes.shape[0], *planes.shape[-2:], planes.dtype)
    to_grad = _sample(planes, points, outer, *options, grad.dtype) if needs[0] else None
    to_planes = _plane_gradient(grad, points, outer, *options, *like) if needs[1] else None
    to_points = _point_gradient(grad, planes, points, outer, *options) if needs[2] else None
    return (to_grad, to_planes, to_points, None, *[None] * len(options))


_product.register_autograd(_product_backward, setup_context=_product_context)
_sample.register_autograd(_sample_backward, setup_context=_sample_context)
_plane_gradient.register_autograd(_plane_gradient_backward, setup_context=_plane_gradient_context)
_point_gradient.register_autograd(_point_gradient_backward, setup_context=_point_gradient_context)
