"""Rendering by the fused Triton kernels: what `coverage.covers` names, forward and backward.

Memory beyond inputs, outputs and gradients: the packed decoder, the occupancy's bits, and in the backward pass one
number for each ray and each program's share of the decoder's gradient, which are summed in fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..launch import device_guard, launch_options
from ..layouts import plane_axes
from .decoder import DENSITIES, DecoderConfig
from .perceptron import ACTIVATIONS
from .tiles import Tile, Widths, architecture, forward_tile, launches, normals_tile, padded, tuned
from .torch_path import March

#: Programs of the backward pass on a device that has no multiprocessors to count, and for each of those it has.
FEW_PROGRAMS = 4
PROGRAMS_EACH = 2
#: No loop of the kernels loads ahead; said, so that what is launched is what was inspected.
STAGES = 2


class Scene(NamedTuple):
    """Everything that both passes take: see `op._forward` for each."""

    planes: Tensor
    rays: tuple[Tensor, Tensor, Tensor, Tensor]
    t: Tensor | None
    cells: Tensor | None
    seeds: Tensor | None
    parameters: Sequence[Tensor]
    config: DecoderConfig
    planes_are: tuple[str, str, bool, str]
    how: March
    first_ray: int
    image_width: int


def forward(scene: Scene) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Colour [B, R, F], depth and opacity [B, R], weights [B, R, S] and normals [B, R, 3] (empty unless asked for)."""
    from .kernels import forward_kernel

    (batch, count), width, how = scene.rays[2].shape, scene.config.out_features, scene.how
    like = scene.rays[2]
    color = torch.empty(batch, count, width, dtype=torch.float32, device=like.device)
    depth, opacity = (torch.empty(batch, count, dtype=torch.float32, device=like.device) for _ in range(2))
    steps = how.num_samples if scene.t is None else scene.t.shape[2]
    # the kernel leaves out what is empty
    weights = torch.zeros((batch, count, steps) if how.weights else 0, dtype=torch.float32, device=like.device)
    normals = torch.empty((batch, count, 3) if how.normals else 0, dtype=torch.float32, device=like.device)
    if like.numel() == 0:
        return color, depth, opacity, weights, normals
    arch, size, widths = _kind(scene)
    shipped = normals_tile(arch, widths) if how.normals else forward_tile(arch, size, widths)
    tile = tuned(shipped, "forward normals" if how.normals else "forward", like.device, size, widths)
    tensors = _tensors(scene)
    numbers, constants = _shared(scene, tensors, tile)
    with device_guard(color):
        forward_kernel[(batch * numbers["tiles"],)](
            *tensors, color, depth, opacity, normals, weights, **numbers, **constants, NORMALS=how.normals,
            WEIGHTS=how.weights, **launch_options(tile.warps, STAGES))
    return color, depth, opacity, weights, normals


def backward(scene: Scene, grads: Sequence[Tensor], results: Sequence[Tensor],
             needed: Sequence[bool]) -> list[Tensor]:
    """Gradients of planes, origins, directions, near, far, t and every parameter; an empty tensor where not needed.

    Args:
        grads: cotangents of colour [B, R, F], depth and opacity [B, R]. results: what `forward` returned for them.
        needed: for each input, as the returned list.
    """
    from .backward_kernels import backward_kernel

    planes, like, device = scene.planes, scene.rays[2], scene.rays[2].device
    batch, count = like.shape
    of_planes, of_rays, of_decoder = needed[0], any(needed[1:6]), any(needed[6:])
    nothing = torch.empty(0, dtype=torch.float32, device=device)
    color, depth, opacity, unscale = _scaled(grads, planes.dtype)
    products = (color * results[0]).sum(-1).addcmul_(depth, results[1]).addcmul_(opacity, results[2])
    channels, height, width = planes.shape[2:]
    grad_planes = nothing
    if of_planes:
        grad_planes = torch.zeros(batch, 3, height, width, channels, dtype=torch.float32, device=device)
    rays = [torch.zeros(x.shape, dtype=torch.float32, device=device) if of_rays else nothing for x in scene.rays]
    places = nothing
    if of_rays and scene.t is not None:
        places = torch.zeros(scene.t.shape, dtype=torch.float32, device=device)
    tensors, kind, shares = _tensors(scene), _kind(scene), [nothing, nothing]
    for launch in launches(*kind, of_planes, of_decoder, of_rays):
        wanted = {"planes": launch.planes, "decoder": launch.decoder, "rays": launch.rays}
        kernel = " ".join(["backward", *(name for name, own in wanted.items() if own)])
        tile = tuned(launch.tile, kernel, device, *kind[1:], launch.planes)
        numbers, constants = _shared(scene, tensors, tile)
        programs = min(_programs(device), batch * numbers["tiles"])
        if launch.decoder:
            shares = [torch.zeros(programs, packed.numel(), dtype=torch.float32, device=device)
                      for packed in tensors[-2:]]
        with device_guard(color):
            backward_kernel[(programs,)](
                *tensors, color, depth, opacity, products, unscale, grad_planes, *rays, places, *shares, **numbers,
                scenes=batch, programs=programs, zero=0, **constants, GRAD_PLANES=launch.planes,
                GRAD_DECODER=launch.decoder, GRAD_RAYS=launch.rays, KEEP=tile.keep, FRESH=tile.fresh,
                WINDOWS=tile.windows, **launch_options(tile.warps, STAGES))
    found = [_as_planes(grad_planes, planes) if of_planes else nothing, *rays, places]
    parameters = [nothing] * len(scene.parameters)
    if of_decoder:
        weights, biases = (x.sum(0) * unscale for x in shares)
        parameters = _unpacked(weights, biases, scene)
    return [x if n else planes.new_empty(0) for x, n in zip([*found, *parameters], needed, strict=True)]


def _kind(scene: Scene) -> tuple[str, int, Widths]:
    """What tiles depend on: the architecture, bytes of an element of the planes, the decoder's widths."""
    return architecture(scene.planes.device), scene.planes.element_size(), Widths.of(scene.config)


def _scaled(grads: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Cotangents of colour, depth and opacity times a power of two that brings the largest near 64, and its inverse.

    Inside the kernel they are multiplied by numbers up to about 1 and rounded to `dtype`: float16 would lose the usual
    ones, a millionth and less, if they came as they are. float32 needs no scale.
    """
    own = [g.to(torch.float32).contiguous() for g in grads]
    if dtype == torch.float32:
        return (*own, own[0].new_ones(1))
    peak = torch.stack([g.abs().nan_to_num(0.0, 0.0, 0.0).amax() for g in own]).amax().view(1)
    exponent = torch.where(peak > 0, peak, 64.0).log2().floor().clamp(-90, 90) - 6
    scale = torch.exp2(-exponent)
    return (*(g * scale for g in own), torch.exp2(exponent))


def _as_planes(grad: Tensor, planes: Tensor) -> Tensor:
    """The gradient [B, 3, H, W, C] in the planes' type and storage."""
    grad = grad.permute(0, 1, 4, 2, 3)
    like = torch.empty_like(planes)
    return grad if like.dtype == grad.dtype and like.stride() == grad.stride() else like.copy_(grad)


def _tensors(scene: Scene) -> list[Tensor]:
    """The tensors that both kernels take first, as `forward_kernel` says."""
    planes, device = _channels_last(scene.planes), scene.planes.device
    unused = torch.empty(1, dtype=torch.float32, device=device)
    return [
        planes, *(x.to(torch.float32).contiguous() for x in scene.rays),
        unused if scene.t is None else scene.t.to(torch.float32).contiguous(),
        unused.view(torch.int32) if scene.cells is None else _bits(scene.cells),
        unused.view(torch.int32) if scene.seeds is None else scene.seeds.contiguous(),
        *_packed(scene.parameters, scene.config, planes.dtype),
    ]


def _shared(scene: Scene, tensors: Sequence[Tensor], tile: Tile) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run-time numbers and constants that both kernels take."""
    config, planes, bits, count = scene.config, tensors[0], tensors[6], scene.rays[2].shape[1]
    layout, reduce, align_corners, padding_mode = scene.planes_are
    columns = scene.image_width if scene.image_width else count
    across = tile.across if scene.image_width else tile.rays
    rows = count // columns
    unit = _unit(planes)
    batch, plane, _, row, column = (stride // unit for stride in planes.stride())
    numbers = {
        "tiles": -(-columns // across) * -(-rows // (tile.rays // across)),
        "columns": columns, "rows": rows, "first_ray": scene.first_ray, "stop": scene.how.stop_below,
        "steps": scene.how.num_samples if scene.t is None else scene.t.shape[2],
        "shift": config.density_bias - (config.density == "shifted_softplus"),
        "resolution": 1 if scene.cells is None else scene.cells.shape[-1],
        "cells_b": bits.shape[-1] if bits.shape[0] > 1 else 0, "height": planes.shape[3], "width": planes.shape[4],
        "plane_b": batch if planes.shape[0] > 1 else 0, "plane_p": plane, "plane_h": row, "plane_w": column,
    }
    axes = [axis for pair in plane_axes(layout.split(",")) for axis in pair]
    constants = {
        "C": config.in_features, "CP": padded(config.in_features), "HIDDEN": padded(*config.hidden),
        "OUT": config.out_features, "OUTP": padded(config.out_features + 1), "DEPTH": len(config.hidden),
        "UNIT": unit, "AXES": sum(axis << (2 * i) for i, axis in enumerate(axes)), "ALIGN": align_corners,
        # inside the box reflection moves a position no further than to the outer texel, as border does
        "BORDER": padding_mode != "zeros", "SCALE": 1 if reduce == "sum" else 1 / 3,
        "ACTIVATION": ACTIVATIONS.index(config.activation),
        "DENSITY": max(DENSITIES.index(config.density) - 1, 0),
        "COLOR": ("sigmoid", "clamped_sigmoid", "none").index(config.color), "CELLS": scene.cells is not None,
        "JITTER": scene.seeds is not None, "EXPLICIT": scene.t is not None, "WORLD": scene.how.deltas == "world",
        "PRECISION": _precision(),
        "BLOCK": tile.rays, "TILE_W": across,
    }
    return numbers, constants


def _precision() -> str:
    """How float32 matrices are multiplied: exactly, unless PyTorch was told that less will do."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return FEW_PROGRAMS
    return PROGRAMS_EACH * torch.cuda.get_device_properties(device).multi_processor_count


def _channels_last(planes: Tensor) -> Tensor:
    """The planes themselves if their channels are innermost, else a copy of which that is true."""
    if planes.stride(2) == 1 or planes.shape[2] == 1:
        return planes
    return planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def _unit(planes: Tensor) -> int:
    """The largest power of two, at most 16, that divides every stride over texels."""
    batch, plane, _, row, column = planes.stride()
    return gcd(batch if planes.shape[0] > 1 else 0, plane, row, column, 16)


def _bits(cells: Tensor) -> Tensor:
    """The occupancy as a bit field: int32 [B, words], cell i in bit i % 32 of word i // 32."""
    flat = cells.flatten(1)
    words = F.pad(flat, (0, -flat.shape[1] % 32)).view(len(flat), -1, 32)
    places = torch.arange(32, dtype=torch.int32, device=cells.device)
    return (words.to(torch.int32) << places).sum(-1, dtype=torch.int32)


def layer_sizes(config: DecoderConfig) -> list[tuple[int, int, int, int]]:
    """For each layer its width in and out, and the same padded."""
    hidden, wide = config.hidden, padded(*config.hidden)
    own = [config.in_features, *hidden, 1 + config.out_features]
    full = [padded(config.in_features), *[wide] * len(hidden), padded(1 + config.out_features)]
    return [(own[i], own[i + 1], full[i], full[i + 1]) for i in range(len(hidden) + 1)]


def _packed(parameters: Sequence[Tensor], config: DecoderConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """All weights, each [in, out] and padded with zeros, one after the other, and all biases likewise in float32."""
    sizes, step = layer_sizes(config), 2 if config.bias else 1
    device = parameters[0].device
    weights = torch.zeros(sum(i * o for _, _, i, o in sizes), dtype=dtype, device=device)
    biases = torch.zeros(sum(o for *_, o in sizes), dtype=torch.float32, device=device)
    for (weight, bias), own in zip(_views(weights, biases, config), range(0, len(parameters), step), strict=True):
        weight.copy_(parameters[own])
        if config.bias:
            bias.copy_(parameters[own + 1])
    return weights, biases


def _unpacked(weights: Tensor, biases: Tensor, scene: Scene) -> list[Tensor]:
    """The parameters' gradients from those of the packed weights and biases, each in its parameter's type."""
    views = [x for pair in _views(weights, biases, scene.config) for x in (pair if scene.config.bias else pair[:1])]
    return [torch.empty_like(p).copy_(x) for p, x in zip(scene.parameters, views, strict=True)]


def _views(weights: Tensor, biases: Tensor, config: DecoderConfig) -> list[tuple[Tensor, Tensor]]:
    """Each layer's weight [out, in] and bias [out] inside packed ones."""
    found, at, shift = [], 0, 0
    for inputs, outputs, rows, columns in layer_sizes(config):
        matrix = weights[at:at + rows * columns].view(rows, columns)
        found.append((matrix[:inputs, :outputs].t(), biases[shift:shift + outputs]))
        at, shift = at + rows * columns, shift + columns
    return found
